"""What can be wrong with data, how much it matters, and what to do about it."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_open

SHOWN = 3  # problems of a kind that are printed; all of them are written

# What training does about a problem.
REFUSED = "refused"  # it stops: at its start, or when it comes to the image
DROPPED = "dropped"  # it leaves the annotation out
WARNING = "warned of"  # it goes on; perhaps the data do not mean what they should


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its severity, what it is (in the plural) and what to do."""

    severity: str
    title: str
    advice: str


KINDS: dict[str, Kind] = {
    "category": Kind(
        REFUSED, "categories without id or name", "give each an integer 'id' and a 'name'"
    ),
    "category_twice": Kind(REFUSED, "category ids that appear twice", "give each class its own id"),
    "image_record": Kind(
        REFUSED, "incomplete image records", "add id, file_name, height and width"
    ),
    "image_twice": Kind(REFUSED, "image ids that appear twice", "give each image its own id"),
    "no_images": Kind(REFUSED, "files without images", "list the images under 'images'"),
    "missing": Kind(
        REFUSED, "images that are not there", "check the image folder, or take them out"
    ),
    "undecodable": Kind(
        REFUSED, "files that do not decode", "copy or write them again, or take them out"
    ),
    "image_size": Kind(
        REFUSED,
        "images of another size than the annotations state",
        "correct width and height, or give the images that were annotated",
    ),
    "unknown_category": Kind(
        REFUSED,
        "annotations of unknown categories",
        "add the class to 'categories', or correct category_id",
    ),
    "box": Kind(REFUSED, "malformed boxes", "write [x, y, width, height] in pixels"),
    "no_mask": Kind(
        REFUSED,
        "annotations without a mask among others that have one",
        "draw the masks, take the annotations out, or train boxes alone",
    ),
    "mask": Kind(
        REFUSED,
        "masks that cannot be read, or are of another size than their image",
        "write polygons, or RLE of the image's size",
    ),
    "nothing": Kind(REFUSED, "data with nothing to train on", "annotate some objects"),
    "no_map": Kind(
        REFUSED, "images without a label map", "write the map as a PNG of the same name"
    ),
    "map_size": Kind(
        REFUSED, "label maps of another size than their image", "write them at the image's size"
    ),
    "map_mode": Kind(
        REFUSED,
        "label maps that are not of one channel of 8 bits",
        "write a class number in every pixel, not colours",
    ),
    "label": Kind(
        REFUSED,
        "label maps with labels outside of the classes",
        "correct the labels, name more classes, or write 255 for pixels of no class",
    ),
    "unknown_image": Kind(
        DROPPED, "annotations of images that are not listed", "correct image_id, or list the image"
    ),
    "no_area": Kind(
        DROPPED,
        "boxes of no area inside the image",
        "correct the box ([x, y, width, height], not two corners) or take it out",
    ),
    "polygons": Kind(
        DROPPED, "masks without a polygon of three points or more", "draw the mask again"
    ),
    "annotation_twice": Kind(
        WARNING,
        "annotation ids that are missing or appear twice",
        "number them; training here does it for all",
    ),
    "file_twice": Kind(WARNING, "files that are listed as several images", "list each file once"),
    "name_twice": Kind(
        WARNING, "classes of the same name", "merge them, or give them different names"
    ),
    "unused": Kind(WARNING, "classes without an object", "take them out unless they are wanted"),
    "polygon_left_out": Kind(
        WARNING, "polygons of fewer than three points, left out of their mask", "draw them again"
    ),
    "outside": Kind(WARNING, "boxes that reach out of their image", "clip them to the image"),
    "polygon_outside": Kind(
        WARNING, "polygons that reach out of their image", "clip them to the image"
    ),
    "empty_mask": Kind(
        WARNING, "masks without a pixel", "draw the mask again or take the annotation out"
    ),
    "disagree": Kind(
        WARNING,
        "boxes that disagree with their mask",
        "find out which is right; boxes are [x, y, width, height]",
    ),
    "area": Kind(WARNING, "areas that are no number above 0", "write the mask's pixels as 'area'"),
    "turned": Kind(
        WARNING,
        "images that EXIF data turn",
        "check on the contact sheet that annotations fit the turned picture",
    ),
    "no_image": Kind(WARNING, "label maps without an image", "add the image, or take the map out"),
    "ambiguous": Kind(
        WARNING, "images that share a label map", "give images different names, not only endings"
    ),
    "ignored": Kind(
        WARNING, "label maps without a labelled pixel", "annotate the image or take it out"
    ),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: a key of :data:`KINDS`.
        file: where it is: an image, a label map, or the annotation file.
        id: of the annotation, image or category; None where files have no ids.
        text: what is wrong.
    """

    kind: str
    file: str
    id: Any
    text: str


class Problems(list[Problem]):
    """All that was found."""

    def note(self, kind: str, file: Any, identity: Any, text: str) -> None:
        """Add one."""
        assert kind in KINDS
        self.append(Problem(kind, str(file), identity, text))

    def counts(self) -> dict[str, int]:
        """How many of each kind, in the order of :data:`KINDS`."""
        found = Counter(problem.kind for problem in self)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def count(self, severity: str) -> int:
        """How many of a severity."""
        return sum(KINDS[problem.kind].severity == severity for problem in self)

    def text(self) -> str:
        """For people: grouped and counted, the first few of each kind."""
        counts = self.counts()
        if not counts:
            return "Problems: none"
        lines = ["Problems"]
        for kind, count in counts.items():
            about = KINDS[kind]
            lines.append(f"  {count} {about.severity}: {about.title}; {about.advice}")
            own = [problem for problem in self if problem.kind == kind]
            lines += [f"    {_place(p)}: {p.text}" for p in own[:SHOWN]]
            if count > SHOWN:
                lines.append(f"    … and {count - SHOWN} more")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: what training would do, for data that it does not take whole."""
        said = [f"{self.count(s)} {s}" for s in (REFUSED, DROPPED, WARNING) if self.count(s)]
        worst = next(s for s in (REFUSED, DROPPED) if self.count(s))
        first = next(p for p in self if KINDS[p.kind].severity == worst)
        ends = "training would stop" if worst == REFUSED else "training would leave these out"
        return f"{ends}: {', '.join(said)}; first: {_place(first)}: {first.text}"

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write all of them, and ``about``, as JSON; atomically."""
        found = [
            {**asdict(p), "severity": KINDS[p.kind].severity, "advice": KINDS[p.kind].advice}
            for p in self
        ]
        with atomic_open(path, "w") as file:
            json.dump({**about, "counts": self.counts(), "problems": found}, file, indent=1)


def _place(problem: Problem) -> str:
    return problem.file if problem.id is None else f"{problem.file}, id {problem.id}"
