"""Kinds of problems in data, with their severity and advice, and the findings of a check."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.atomic import atomic_open
from .locations import DataLocation

SHOWN = 3  # printed problems of each kind; the file lists all of them

# What training does about a problem.
REFUSED = "refused"  # it stops, at the start or when it reaches the image
DROPPED = "dropped"  # it drops the annotation
SKIPPED = "skipped"  # it leaves this out on purpose, and loses no annotation
CONVERTED = "converted"  # it reads the data as they were meant
WARNING = "warning"  # it uses the data, which may be wrong
SEVERITIES = (REFUSED, DROPPED, SKIPPED, CONVERTED, WARNING)

# Warnings that the line of :func:`count_line` counts: they change what is trained on and scored.
COUNTED = (
    "file_twice",
    "name_twice",
    "polygon_left_out",
    "no_image",
    "ignored",
    "unread",
    "ambiguous",
    "two_labels_map",
    "one_class",
)


class Kind(NamedTuple):
    """A kind of problem; the title is in the plural."""

    severity: str
    title: str
    advice: str


_TEXTS = {  # kind: title; advice
    REFUSED: """\
category: categories without id or name; add an integer 'id' and a 'name'
category_twice: category ids that appear twice; give each class its own id
image_record: wrong image records; write id, file_name, and height and width in whole pixels
image_twice: image ids that appear twice; give each image its own id
no_images: files without images; list the images under 'images'
missing: images that do not exist; check the image folder, or leave them out with --skip-missing
undecodable: files that do not decode; replace or remove them
image_size: images with another size than their record; correct width and height
image_float: images of floating-point numbers; save them with 8 or 16 bits per channel
too_large: images with more pixels than can be opened; cut them into smaller images
unknown_category: annotations of unknown categories; list the category, or correct category_id
box: malformed boxes; write [x, y, width, height] in pixels
crowd: wrong values of 'iscrowd'; write 1 for a crowd region and 0 for one object
mask: masks that cannot be read or have the wrong size; write polygons, or RLE of the image's size
nothing: data with nothing to train on; annotate some objects
no_map: images without a label map; add a PNG file with the name of the image
map_size: label maps with another size than their image; write them with the image's size
map_twice: label maps with the name of another one; keep one of the two
map_mode: label maps with colors or other values than 0 to 255; write class numbers instead
label: label maps with labels that are no class; name more classes, or write 255 for no class
two_labels: label maps whose only labels are 0 and 255; 255 means no class, so write 1 instead""",
    DROPPED: """\
unknown_image: annotations of images that are not listed; correct image_id, or list the image
no_area: boxes with no area inside the image; write [x, y, width, height], not two corners
no_mask: annotations without a mask in a file with masks; draw the masks, or train on boxes only
polygons: masks without a polygon of three points or more; draw the mask again
empty_mask: masks without a pixel; draw the mask again, or remove the annotation""",
    SKIPPED: """\
image_again: repeated image records; list each image once
absent: images that do not exist; check the image folder, or remove their records
empty: images without objects; annotate them, or keep them with --keep-empty
no_class: shapes of labelme's __ignore__ or _background_; nothing has to be done
parent: unused parent categories; nothing has to be done
no_map_skipped: images without a label map; nothing has to be done
hidden: hidden files, whose names begin with a dot; nothing has to be done""",
    CONVERTED: """\
number: numbers written as "64", 64.0 or true; write whole numbers such as 64
image_numbered: files with image ids that are not whole numbers; nothing has to be done
category_name: class names that are not text, or with spaces around them; write them as text
backslash: file names with backslashes; write slashes
outside: boxes that reach beyond their image, clipped to it; nothing has to be done
area: areas that are not positive numbers; write the pixels of the mask as 'area'
mask_form: masks with flat or deeply nested polygons or numbers as text; write [[x1, y1, x2, …]]
crowd_used: crowd regions read as objects; nothing has to be done
unturned: images read without their EXIF orientation; their records have the size before it
image_depth: images of 16 bits per channel, scaled to 8; nothing has to be done
map_depth: label maps in another form than 8 bits with one channel; their labels are used""",
    WARNING: """\
annotation_twice: annotation ids that are missing or appear twice; training numbers them again
file_twice: files that are listed as several images; list each file once
name_twice: classes with the same name; merge or rename them
unused: classes without an object; remove them unless they are wanted
polygon_left_out: masks with ignored polygons of fewer than three points; draw them again
polygon_outside: polygons that reach beyond their image; clip them to the image
disagree: boxes that disagree with their mask; find out which is right
turned: images that EXIF data rotate or mirror; check that the annotations fit the upright image
no_image: label maps without an image; add the image, or remove the label map
ambiguous: images that share the label map of another image; give them different names
unread: annotation files without an image or in a subfolder; add the image, or move the file
ignored: label maps without a labelled pixel; annotate the image, or remove it
two_labels_map: label maps with only the labels 0 and 255; write 1 if 255 is meant as a class
one_class: label maps with only the label 0; annotate another class""",
}
KINDS = {
    kind: Kind(severity, *texts.split("; "))
    for severity, lines in _TEXTS.items()
    for kind, texts in (line.split(": ") for line in lines.splitlines())
}


@dataclass(frozen=True)
class Problem:
    """A problem in the data."""

    kind: str  # a key of KINDS
    file: str  # path of the image, label map or annotation file
    id: Any  # id of the annotation, image or category; None where there is none
    text: str

    @property
    def place(self) -> str:
        """The file, and the id if there is one."""
        return self.file if self.id is None else f"{self.file}, id {self.id}"


class Problems(list[Problem]):
    """All problems that a check found."""

    def note(self, kind: str, file: Any, identity: Any, text: str) -> None:
        """Add a problem."""
        assert kind in KINDS
        self.append(Problem(kind, str(file), identity, text))

    def counts(self) -> dict[str, int]:
        """Count the problems of each kind, in the order of :data:`KINDS`."""
        found = Counter(problem.kind for problem in self)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def of_severity(self, severity: str) -> list[Problem]:
        """Return the problems of a severity."""
        return [problem for problem in self if KINDS[problem.kind].severity == severity]

    def text(self) -> str:
        """Return lines for people: each kind with its number, advice and first problems."""
        lines = []
        for kind, count in self.counts().items():
            severity, title, advice = KINDS[kind]
            lines.append(f"  {_counted(count, severity)}: {title}; {advice}")
            own = [problem for problem in self if problem.kind == kind]
            lines += [f"    {problem.place}: {problem.text}" for problem in own[:SHOWN]]
            if count > SHOWN:
                lines.append(f"    … and {count - SHOWN} more")
        return "\n".join(["Problems", *lines]) if lines else "Problems: none"

    def summary(self) -> str | None:
        """Return one line about what training would refuse or drop; None if it would do neither."""
        groups = {severity: self.of_severity(severity) for severity in SEVERITIES}
        counts = ", ".join(_counted(len(own), s) for s, own in groups.items() if own)
        for severity, action in ((REFUSED, "stop"), (DROPPED, "drop annotations")):
            if groups[severity]:
                first = groups[severity][0]
                return f"training would {action}: {counts}; first: {first.place}: {first.text}"
        return None

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write ``about`` and all problems as JSON, atomically."""
        problems = []
        for problem in self:
            severity, _, advice = KINDS[problem.kind]
            problems.append({**asdict(problem), "severity": severity, "advice": advice})
        with atomic_open(path, "w") as file:
            json.dump({**about, "counts": self.counts(), "problems": problems}, file, indent=1)


@dataclass
class Findings:
    """Findings of a check; the subclasses have ``pictures()`` and ``legend()`` for the sheet."""

    source: str  # path of the COCO-format file, or folder of the label maps
    root: str | None  # folder of the images; None where only label maps are checked
    listed: int = 0  # number of images, or of label maps without images
    problems: Problems = field(default_factory=Problems)
    location: DataLocation | None = None
    notes: list[str] = field(default_factory=list)  # sentences for the user


def count_line(counts: Mapping[str, int]) -> str:
    """Return the part of a summary line that counts what was left out, converted and warned of.

    Example: ``; left out: repeated image records (2); converted: file names with backslashes (5)``.
    ``counts`` has the number of problems of each kind. The text is empty if none of them matter.
    """
    groups: dict[str, list[str]] = {"left out": [], "converted": [], "warnings": []}
    for kind in KINDS:
        severity, title, _ = KINDS[kind]
        if not counts.get(kind) or severity == REFUSED:
            continue
        if severity != WARNING:
            name = "converted" if severity == CONVERTED else "left out"
        elif kind in COUNTED:
            name = "warnings"
        else:
            continue
        groups[name].append(f"{title} ({counts[kind]})")
    return "".join(f"; {name}: {', '.join(own)}" for name, own in groups.items() if own)


def _counted(number: int, severity: str) -> str:
    return f"{number} {severity}" + "s" * (severity == WARNING and number != 1)
