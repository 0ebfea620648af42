"""COCO-format annotation files: read, checked, and cleaned of what cannot be trained on."""

import json
import math
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_open
from ..utils.errors import UserError


@dataclass
class CocoData:
    """A checked annotation file.

    Attributes:
        source: the annotation file.
        images: the file's image records, sorted by id; ``path`` is added.
        annotations: the usable annotation records of each image id.
        categories: the category records, sorted by id; a class index is a place in this list.
        dropped: how many annotations were left out, by reason.
    """

    source: str
    images: list[dict]
    annotations: dict[int, list[dict]]
    categories: list[dict]
    dropped: Counter = field(default_factory=Counter)

    @property
    def class_names(self) -> list[str]:
        """Names by class index."""
        return [category["name"] for category in self.categories]

    @cached_property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id; ids need not be contiguous."""
        return {category["id"]: index for index, category in enumerate(self.categories)}

    def summary(self) -> str:
        """One line: what is there and what was dropped."""
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
        """Write the usable part as a COCO-format file, atomically."""
        images = [{k: v for k, v in image.items() if k != "path"} for image in self.images]
        annotations = [a for image in self.images for a in self.annotations[image["id"]]]
        data = {"images": images, "annotations": annotations, "categories": self.categories}
        with atomic_open(path, "w") as file:
            json.dump(data, file)


def read_categories(json_file: str | os.PathLike) -> list[dict]:
    """The category records of an annotation file, sorted by id.

    Raises:
        UserError: the file is missing, not JSON, or has no usable ``categories``.
    """
    return _categories(load_json(json_file), json_file)


def read_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    masks: bool = True,
    training: bool = False,
) -> CocoData:
    """Read and check an annotation file.

    Annotations whose box has no area inside the image, or whose polygons all have fewer than three
    points, are dropped and counted, as COCO training does. ``iscrowd``, ``area`` and ``id`` are
    filled in where they are missing.

    Args:
        json_file: the annotation file.
        image_root: the folder that its ``file_name`` entries are relative to.
        masks: whether every annotation must have a ``segmentation``.
        training: whether there must be something to train on; images without objects are then
            left out.

    Raises:
        UserError: the file is missing, not JSON or lacks a part; an image is not there; an
            annotation is malformed; nothing to train on is left.
    """
    data = load_json(json_file)
    categories = _categories(data, json_file)
    result = CocoData(str(json_file), _images(data, json_file, Path(image_root)), {}, categories)
    by_id = {image["id"]: image for image in result.images}
    result.annotations = {image_id: [] for image_id in by_id}
    records = list_records(data, "annotations", json_file)
    ids = {a.get("id") for a in records if isinstance(a.get("id"), Hashable)}
    unique_ids = len(ids) == len(records)
    for number, annotation in enumerate(records, 1):
        image = _by_key(by_id, annotation.get("image_id"))
        if image is None:
            result.dropped["of images that are not listed"] += 1
            continue
        annotation = _checked(annotation, image, result, masks)
        if annotation is not None:
            if not unique_ids or annotation.get("id") is None:
                annotation["id"] = number
            result.annotations[image["id"]].append(annotation)
    if training:
        _require_objects(result)
    return result


def load_json(json_file: str | os.PathLike) -> dict:
    """The object in an annotation file.

    Raises:
        UserError: the file is missing, not JSON, or no object.
    """
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
    """The records under ``key`` of an annotation file.

    Raises:
        UserError: there is no list of records.
    """
    records = data.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        problem = "has no" if key not in data else "has a malformed"
        raise UserError(
            f"{source} {problem} {key!r}: expected COCO format, a list of records in each of "
            "images, annotations and categories"
        )
    return records


def _categories(data: Mapping[str, Any], source: str | os.PathLike) -> list[dict]:
    categories = list_records(data, "categories", source)
    if not categories:
        raise UserError(f"{source} has an empty 'categories': expected one record for each class")
    for category in categories:
        fault = find_category_fault(category)
        if fault:
            raise UserError(f"{source}: {fault}")
    categories = sorted(categories, key=lambda category: category["id"])
    for one, other in zip(categories, categories[1:], strict=False):
        if one["id"] == other["id"]:
            raise UserError(
                f"{source}: category id {one['id']} is both {one['name']!r} and {other['name']!r}; "
                "expected each id once"
            )
    return categories


def find_category_fault(category: Mapping[str, Any]) -> str | None:
    """What is wrong with a category record by itself, None for a usable one."""
    if not isinstance(category.get("id"), int) or not category.get("name"):
        return f"category {category} needs an integer 'id' and a 'name'"
    return None


def find_image_fault(record: Mapping[str, Any]) -> str | None:
    """What is wrong with an image record by itself, None for a usable one."""
    for key, kind in (("id", int), ("file_name", str), ("height", int), ("width", int)):
        if not isinstance(record.get(key), kind):
            name = record.get("file_name", record.get("id"))
            return f"image {name!r} has no {key!r} of type {kind.__name__}"
    return None


def _images(data: Mapping[str, Any], source: str | os.PathLike, root: Path) -> list[dict]:
    images, missing = {}, []
    for record in list_records(data, "images", source):
        fault = find_image_fault(record)
        if fault:
            raise UserError(f"{source}: {fault}")
        if record["id"] in images:
            raise UserError(f"{source}: image id {record['id']} appears twice; expected each once")
        path = root / record["file_name"]
        if not path.is_file():
            missing.append(path)
        images[record["id"]] = {**record, "path": str(path)}
    if not images:
        raise UserError(f"{source} lists no image: expected a record for each image in 'images'")
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} images that {source} names are not there "
            f"(first: {missing[0]}); check the image folder {root}"
        )
    return [images[image_id] for image_id in sorted(images)]


def _checked(annotation: dict, image: dict, data: CocoData, masks: bool) -> dict | None:
    fault = find_fault(annotation, image, data.class_index, masks)
    if fault is not None and fault.drops:
        data.dropped[fault.text] += 1
        return None
    if fault is not None:
        where = f"{data.source}: annotation {annotation.get('id')} of {image['file_name']}"
        raise UserError(f"{where} {fault.text}")
    box = annotation["bbox"]
    annotation = {"iscrowd": 0, "area": box[2] * box[3], **annotation}
    if isinstance(annotation.get("segmentation"), list):
        annotation["segmentation"] = [p for p in annotation["segmentation"] if is_polygon(p)]
    return annotation


@dataclass(frozen=True)
class Fault:
    """Why an annotation cannot be used.

    Attributes:
        kind: one word for it: category, box, area, polygons, mask (malformed) or no_mask.
        text: what is wrong, to stand after the annotation's name.
        drops: whether the annotation is left out; otherwise the file is refused.
    """

    kind: str
    text: str
    drops: bool = False


def find_fault(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    class_index: Mapping[int, int],
    masks: bool = True,
) -> Fault | None:
    """Why an annotation cannot be used, None for a usable one.

    Args:
        annotation, image: the records; the image's is known to be usable.
        class_index: by category id.
        masks: whether there must be a ``segmentation``.
    """
    category = annotation.get("category_id")
    if _by_key(class_index, category) is None:
        known = f"the file's categories {list(class_index)}"
        return Fault("category", f"has category_id {category!r}, which is not among {known}")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        text = f"has the bbox {box!r}: expected [x, y, width, height] in pixels"
        return Fault("box", text)
    if not _has_area(box, image):
        return Fault("area", "with a box of no area inside the image", drops=True)
    segmentation = annotation.get("segmentation")
    if masks and not segmentation:
        text = "has no 'segmentation', and this model learns masks: expected polygons or RLE"
        return Fault("no_mask", text)
    if isinstance(segmentation, list):
        if segmentation and not any(map(is_polygon, segmentation)):
            return Fault("polygons", "without a polygon of three points or more", drops=True)
        return None
    return _find_rle_fault(segmentation, image) if segmentation else None


def _find_rle_fault(segmentation: Any, image: Mapping[str, Any]) -> Fault | None:
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, (list, str)):
        kind = f"with the keys {list(segmentation)}" if isinstance(segmentation, dict) else ""
        found = f"a {type(segmentation).__name__} {kind}".strip()
        text = f"has {found} as its 'segmentation': expected polygons or RLE with 'counts'"
        return Fault("mask", text)
    size, expected = segmentation.get("size"), [image["height"], image["width"]]
    if size != expected:
        text = f"has an RLE mask of the size {size}: expected its image's {expected}"
        return Fault("mask", f"{text} (height, width)")
    return None


def _by_key(mapping: Mapping, key: Any) -> Any:
    """The value of a key that may be anything that JSON can hold."""
    return mapping.get(key) if isinstance(key, Hashable) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_polygon(points: Any) -> bool:
    """Whether ``points`` are x1, y1, x2, y2, … of three points or more, all finite."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(_is_number(value) and math.isfinite(value) for value in points)
    )


def _has_area(box: list[float], image: dict) -> bool:
    if not all(math.isfinite(value) for value in box):
        return False
    x, y, width, height = box
    inside_width = min(x + width, image["width"]) - max(x, 0)
    inside_height = min(y + height, image["height"]) - max(y, 0)
    return inside_width > 0 and inside_height > 0


def _require_objects(data: CocoData) -> None:
    data.images = [
        image
        for image in data.images
        if any(not a["iscrowd"] for a in data.annotations[image["id"]])
    ]
    if not data.images:
        dropped = f" (dropped: {dict(data.dropped)})" if data.dropped else ""
        raise UserError(
            f"{data.source} has no usable annotation to train on{dropped}: "
            "expected at least one object with a box inside its image"
        )
    data.annotations = {image["id"]: data.annotations[image["id"]] for image in data.images}
