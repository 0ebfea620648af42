"""Read COCO-format annotation files, check them, and drop annotations that cannot be used."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from .problems import DROPPED, KINDS, REFUSED

# A function that takes note of a problem: its kind, file, id and text, see Problems.note.
Note = Callable[[str, Any, Any, str], None]


@dataclass(frozen=True)
class ReadOptions:
    """What to read, and what to leave out.

    Attributes:
        masks: whether every object needs a mask; False reads boxes only, and None reads masks if at
            least one object has a mask.
        training: whether the data are for training, which leaves out images without objects.
        keep_empty: whether training keeps images without objects.
        skip_missing: whether to leave out images that do not exist, instead of refusing them.
        use_crowds: whether objects with ``iscrowd`` 1 count as ordinary objects.
        classes: class names of the model that the data are for; () if it has none yet. A category
            with one of these names stays a class even if it looks like an unused parent.
    """

    masks: bool | None = True
    training: bool = False
    keep_empty: bool = False
    skip_missing: bool = False
    use_crowds: bool = False
    classes: tuple[str, ...] = ()


READ_ALL = ReadOptions()


@dataclass
class CocoData:
    """A checked annotation file."""

    source: str  # path of the annotation file
    images: list[dict]  # records, sorted by id, with ``path`` added
    annotations: dict[int, list[dict]]  # usable records of each image id
    categories: list[dict]  # records, sorted by id; a class index is a position in this list
    dropped: Counter = field(default_factory=Counter)  # number of dropped annotations by reason
    masks: bool = True  # whether the objects have masks

    @property
    def class_names(self) -> list[str]:
        """Class names by class index."""
        return [category["name"] for category in self.categories]

    @cached_property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id; ids need not be contiguous."""
        return {category["id"]: index for index, category in enumerate(self.categories)}

    def summary(self) -> str:
        """Return one line: numbers of images, objects and classes, and dropped annotations."""
        count = sum(map(len, self.annotations.values()))
        text = (
            f"{self.source}: {len(self.images)} images, {count} objects, "
            f"{len(self.categories)} classes ({', '.join(self.class_names)})"
        )
        if self.dropped:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.dropped.items())
            text += f"; dropped {self.dropped.total()} annotations: {reasons}"
        return text

    def write(self, path: str | os.PathLike) -> None:
        """Write the usable annotations as a COCO-format file, atomically."""
        images = [{k: v for k, v in image.items() if k != "path"} for image in self.images]
        annotations = [a for image in self.images for a in self.annotations[image["id"]]]
        data = {"images": images, "annotations": annotations, "categories": self.categories}
        with atomic_open(path, "w") as file:
            json.dump(data, file)


def read_categories(json_file: str | os.PathLike) -> list[dict]:
    """Return the category records of an annotation file, sorted by id; raise UserError if none."""
    return list_categories(load_json(json_file), json_file, _refuse_in(json_file))


def read_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    options: ReadOptions = READ_ALL,
) -> CocoData:
    """Read and check an annotation file, see :func:`read_content`."""
    return read_content(load_json(json_file), json_file, image_root, options)


def read_content(
    data: Mapping[str, Any],
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    options: ReadOptions = READ_ALL,
) -> CocoData:
    """Check the content of an annotation file.

    Annotations are dropped and counted if their image is not listed, if their box has no area
    inside the image, or if none of their polygons has three points, as is usual for COCO. Missing
    ``iscrowd``, ``area`` and ``id`` are filled in.

    Args:
        data: content of the file.
        json_file: path of the annotation file, for messages.
        image_root: folder of the images; ``file_name`` entries are relative to it.
        options: what to read, and what to leave out.

    Raises:
        UserError: the file is missing, is not JSON, or lacks one of its lists; an image file does
            not exist; an annotation is malformed; no image with objects is left for training.
    """
    refuse = _refuse_in(json_file)
    masks = options.masks
    if masks is None:
        records = list_records(data, "annotations", json_file)
        masks = any(record.get("segmentation") for record in records)
    categories = list_categories(data, json_file, refuse)
    images = list_images(data, json_file, Path(image_root), refuse)
    missing = [image["path"] for image in images.values() if not os.path.isfile(image["path"])]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images in {json_file} do not exist "
            f"(first: {missing[0]}): check the folder of images, {image_root}"
        )
    ordered = [images[image_id] for image_id in sorted(images)]
    empty = {image["id"]: [] for image in ordered}
    result = CocoData(str(json_file), ordered, empty, categories, masks=masks)
    counts: Counter = Counter()

    def note(kind: str, path: Any, identity: Any, text: str) -> None:
        counts[kind] += 1
        if KINDS[kind].severity == REFUSED:
            name = "an annotation" if identity is None else f"annotation {identity}"
            image = os.path.relpath(path, image_root)
            raise UserError(f"{json_file}: {name} of {image}: {text}")

    usable = list(list_annotations(data, json_file, images, result.class_index, masks, note))
    for number, image, annotation in usable:
        width, height = annotation["bbox"][2:]
        annotation = {"iscrowd": 0, "area": width * height, **annotation}
        if isinstance(annotation.get("segmentation"), list):
            annotation["segmentation"] = [p for p in annotation["segmentation"] if is_polygon(p)]
        if counts["annotation_twice"]:
            annotation["id"] = number
        result.annotations[image["id"]].append(annotation)
    dropped = {kind: n for kind, n in counts.items() if KINDS[kind].severity == DROPPED}
    result.dropped.update({KINDS[kind].title: number for kind, number in dropped.items()})
    return without_empty(result, options) if options.training else result


def _refuse_in(source: str | os.PathLike) -> Note:
    def note(kind: str, _path: Any, _identity: Any, text: str) -> None:
        if KINDS[kind].severity == REFUSED:
            raise UserError(f"{source}: {text}")

    return note


def load_json(json_file: str | os.PathLike) -> dict:
    """Read the JSON object in an annotation file; raise UserError if there is none."""
    if not os.path.isfile(json_file):
        raise UserError(f"no annotation file {json_file}: expected a COCO-format .json file")
    try:
        with open(json_file, encoding="utf-8") as file:
            data = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{json_file} is not JSON ({error}): expected COCO format") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{json_file} holds a {type(data).__name__}: expected COCO format, an object with "
            "images, annotations and categories"
        )
    return data


def list_records(data: Mapping[str, Any], key: str, source: str | os.PathLike) -> list[dict]:
    """Return the records under ``key`` of an annotation file; raise UserError if it has none."""
    records = data.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        problem = "has no" if key not in data else "has a malformed"
        raise UserError(
            f"{source} {problem} {key!r}: expected COCO format, a list of records in each of "
            "images, annotations and categories"
        )
    return records


def list_categories(data: Mapping[str, Any], source: str | os.PathLike, note: Note) -> list[dict]:
    """Return the usable category records, sorted by id; note the problems of the others."""
    usable: dict[int, dict] = {}
    records = list_records(data, "categories", source)
    if not records:
        note("category", source, None, "'categories' is empty: expected a record for each class")
    for record in records:
        identity, name = record.get("id"), record.get("name")
        if not isinstance(identity, int) or not name:
            text = f"category {record} needs an integer 'id' and a 'name'"
            note("category", source, identity, text)
        elif identity in usable:
            text = f"category id {identity} is both {usable[identity]['name']!r} and {name!r}"
            note("category_twice", source, identity, text)
        else:
            usable[identity] = record
    return [usable[identity] for identity in sorted(usable)]


def list_images(
    data: Mapping[str, Any], source: str | os.PathLike, root: Path, note: Note
) -> dict[int, dict]:
    """Return the usable image records by id, with ``path`` added; note the others' problems."""
    usable, names = {}, {}
    records = list_records(data, "images", source)
    if not records:
        note("no_images", source, None, "'images' is empty: expected a record for each image")
    types = {"id": int, "file_name": str, "height": int, "width": int}
    for record in records:
        identity, name = record.get("id"), record.get("file_name")
        wrong = [key for key, kind in types.items() if not isinstance(record.get(key), kind)]
        path = str(root / name) if isinstance(name, str) else None
        if wrong:
            expected = f"{wrong[0]!r} of type {types[wrong[0]].__name__}"
            note("image_record", source, identity, f"image {name or identity!r} has no {expected}")
        elif identity in usable:
            first = usable[identity]["file_name"]
            text = f"image id {identity} appears twice, for {first!r} and {name!r}"
            note("image_twice", path, identity, text)
        else:
            if name in names:
                note("file_twice", path, identity, f"the image {names[name]} has the same file")
            names.setdefault(name, identity)
            usable[identity] = {**record, "path": path}
    return usable


def list_annotations(
    data: Mapping[str, Any],
    source: str | os.PathLike,
    images: Mapping[int, dict],
    class_index: Mapping[int, int],
    masks: bool,
    note: Note,
) -> Iterator[tuple[int, dict, dict]]:
    """Yield usable annotations as (number from 1, image record, annotation record).

    ``class_index`` has the category ids as keys. With ``masks``, annotations need a mask.
    """
    ids = set()
    for number, annotation in enumerate(list_records(data, "annotations", source), 1):
        identity = annotation.get("id")
        image = _get(images, annotation.get("image_id"))
        path = image["path"] if image else source
        if not isinstance(identity, int):
            note("annotation_twice", path, identity, "the annotation has no integer id")
        elif identity in ids:
            note("annotation_twice", path, identity, "another annotation has the same id")
        else:
            ids.add(identity)
        if image is None:
            text = f"the image_id is {annotation.get('image_id')!r}, which is not listed"
            note("unknown_image", path, identity, text)
        elif fault := _find_fault(annotation, image, class_index, masks):
            note(fault[0], path, identity, fault[1])
        else:
            yield number, image, annotation


def _find_fault(
    annotation: dict, image: dict, class_index: Mapping[int, int], masks: bool
) -> tuple[str, str] | None:
    """Return the kind and text of the problem that makes an annotation unusable, or None."""
    category, box = annotation.get("category_id"), annotation.get("bbox")
    segmentation = annotation.get("segmentation")
    if _get(class_index, category) is None:
        text = f"the category_id is {category!r}, expected one of {list(class_index)}"
        return "unknown_category", text
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return "box", f"the bbox is {box!r}, expected [x, y, width, height] in pixels"
    if not _has_area(box, image):
        return "no_area", f"the box {box} has no area inside the image"
    if not segmentation:
        text = "there is no 'segmentation', expected polygons or RLE, since the model learns masks"
        return ("no_mask", text) if masks else None
    if isinstance(segmentation, list):
        if any(map(is_polygon, segmentation)):
            return None
        return "polygons", "no polygon has three points or more"
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        keys = f" with the keys {list(segmentation)}" if isinstance(segmentation, dict) else ""
        kind = type(segmentation).__name__ + keys
        return "mask", f"the 'segmentation' is a {kind}, expected polygons or RLE with 'counts'"
    size, expected = segmentation.get("size"), [image["height"], image["width"]]
    if size != expected:
        return "mask", f"the RLE has the size {size}, expected the image's {expected}"
    return None


def _get(mapping: Mapping, key: Any) -> Any:
    """Return the value of a key, or None; the key may be any JSON value."""
    return mapping.get(key) if isinstance(key, Hashable) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_polygon(points: Any) -> bool:
    """Return whether ``points`` is [x1, y1, x2, y2, …] with at least three points, all finite."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(_is_number(value) and math.isfinite(value) for value in points)
    )


def _has_area(box: list[float], image: dict) -> bool:
    x, y, width, height = box
    inside_width = min(x + width, image["width"]) - max(x, 0)
    inside_height = min(y + height, image["height"]) - max(y, 0)
    return all(map(math.isfinite, box)) and inside_width > 0 and inside_height > 0


def without_empty(data: CocoData, options: ReadOptions) -> CocoData:
    """Leave out the images without objects, unless the options keep them.

    Raises:
        UserError: no image with an object is left.
    """
    del options
    data.annotations = {
        image_id: annotations
        for image_id, annotations in data.annotations.items()
        if any(not annotation["iscrowd"] for annotation in annotations)
    }
    data.images = [image for image in data.images if image["id"] in data.annotations]
    if not data.images:
        dropped = f" (dropped: {dict(data.dropped)})" if data.dropped else ""
        raise UserError(
            f"{data.source} has no usable annotation to train on{dropped}: "
            "expected at least one object with a box inside its image"
        )
    return data
