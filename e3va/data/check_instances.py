"""Check a COCO-format file and its images as a whole, so that no problem hides another.

Whether an annotation can be used is decided in :mod:`e3va.data.coco`, as for training. This module
adds the problems that only an opened image or a drawn mask shows.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask

from ..utils.errors import UserError
from .coco import is_polygon, list_annotations, list_categories, list_images, list_records
from .contact_sheet import Picture
from .images import check_image, in_threads
from .masks import find_extent, to_rle
from .problems import Findings, Problems

OUTSIDE = 1.0  # pixels; a box or polygon may reach this far beyond its image
# Edges of a box and of its mask may differ by this many pixels, or by this share of the box's
# longer side, since people draw them by hand.
APART, APART_SHARE = 3.0, 0.1


@dataclass
class ClassCount:
    """Numbers of a class."""

    id: Any
    name: str
    images: int = 0
    crowds: int = 0
    # √area in pixels of each object that is no crowd
    sizes: list[float] = field(default_factory=list)


@dataclass
class InstanceFindings(Findings):
    """Findings in a COCO-format file and its images."""

    data: Mapping[str, Any] = field(default_factory=dict)  # content of the file
    masks: bool = True  # whether the annotations have masks, or boxes only
    images: list[dict] = field(default_factory=list)  # usable records in the file's order
    annotations: dict[int, list[dict]] = field(default_factory=dict)  # usable, by image id
    classes: list[ClassCount] = field(default_factory=list)  # by class index

    @property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id."""
        return {row.id: index for index, row in enumerate(self.classes)}

    def pictures(self) -> list[Picture]:
        """Return the usable images with their objects."""
        index, result = self.class_index, []
        for image in self.images:
            objects = [
                (index[a["category_id"]], a["bbox"], a.get("segmentation"))
                for a in self.annotations[image["id"]]
            ]
            count = f"{len(objects)} object{'s' * (len(objects) != 1)}" if objects else "no object"
            caption = f"{image['file_name']} (id {image['id']}): {count}"
            classes = frozenset(label for label, _, _ in objects)
            size = (image["width"], image["height"])
            result.append(Picture(image["path"], size, caption, classes, objects))
        return result

    def legend(self) -> list[tuple[str, str]]:
        """Return the name of each class and its number of objects."""
        return [(row.name, str(len(row.sizes))) for row in self.classes]


def kind_of_file(data: Mapping[str, Any]) -> str:
    """Return the content of a COCO-format file: ``panoptic``, ``keypoints`` or ``instances``."""

    def has(key: str, mark: str) -> bool:
        records = data.get(key)
        return isinstance(records, list) and any(isinstance(r, dict) and mark in r for r in records)

    if has("annotations", "segments_info"):
        return "panoptic"
    return "keypoints" if has("categories", "keypoints") else "instances"


def check_instances(
    data: Mapping[str, Any], source: str | Path, root: str | Path
) -> InstanceFindings:
    """Check the content of the annotation file ``source``, and decode its images below ``root``."""
    if kind_of_file(data) == "panoptic":
        annotations = list_records(data, "annotations", source)
        segments = sum(len(a.get("segments_info") or ()) for a in annotations)
        raise UserError(
            f"{source} is a COCO panoptic file ({len(annotations)} images, {segments} segments): "
            "expected instances; use the instances_*.json of the same images, and a folder of "
            "label maps for stuff classes"
        )
    found = InstanceFindings(str(source), str(root), data=data)
    note = found.problems.note
    categories = list_categories(data, source, note)
    found.classes = [ClassCount(category["id"], str(category["name"])) for category in categories]
    names = Counter(row.name for row in found.classes)
    for row in found.classes:
        if (count := names[row.name]) > 1:
            note("name_twice", source, row.id, f"{count} classes have the name {row.name!r}")
    images = list_images(data, source, Path(root), note)
    found.listed, found.annotations = len(data["images"]), {identity: [] for identity in images}
    records = list_records(data, "annotations", source)
    found.masks = not records or any(a.get("segmentation") for a in records)
    usable = list_annotations(data, source, images, found.class_index, found.masks, note)
    for _, image, annotation in usable:
        found.annotations[image["id"]].append(annotation)
    _check_images(found, list(images.values()))
    _count(found)
    for row in found.classes:
        if not row.sizes and not row.crowds:
            note("unused", source, row.id, f"no object of the class {row.name!r}")
    if not any(row.sizes for row in found.classes):
        note("nothing", source, None, "no usable object")
    return found


def _check_images(found: InstanceFindings, images: list[dict]) -> None:
    """Decode the images, and fill in the usable ones and their usable annotations."""

    def work(image: dict) -> tuple[bool, list[dict], Problems]:
        problems, path, identity = Problems(), image["path"], image["id"]
        if not Path(path).is_file():
            problems.note("missing", path, identity, "the file does not exist")
            return False, [], problems
        usable = [a for a in found.annotations[identity] if _check_shape(a, image, problems)]
        size = check_image(path, problems, identity, (image["width"], image["height"]))
        return size is not None, usable, problems

    results = in_threads(work, images, "checking images")
    for image, (is_usable, annotations, problems) in zip(images, results, strict=True):
        found.problems += problems
        found.annotations[image["id"]] = annotations
        if is_usable:
            found.images.append(image)


def _check_shape(annotation: dict, image: dict, problems: Problems) -> bool:
    """Note the problems of an annotation's box and mask; return whether the mask can be read."""
    width, height = image["width"], image["height"]

    def note(kind: str, text: str) -> None:
        problems.note(kind, image["path"], annotation.get("id"), text)

    if not _is_area(annotation.get("area", 1)):
        note("area", f"the area is {annotation['area']!r}")
    x, y, w, h = annotation["bbox"]
    box = _numbers(annotation["bbox"])
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > OUTSIDE:
        note("outside", f"the box {box} reaches {beyond:.4g} pixels beyond the image")
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return True
    if isinstance(segmentation, list):
        _check_polygons(segmentation, width, height, note)
    try:
        rle = to_rle(segmentation, height, width)
    except ValueError as error:
        note("mask", str(error))
        return False
    if not pycocotools.mask.area(rle):
        note("empty_mask", "the mask has no pixel")
        return True
    x1, y1, x2, y2 = mask = find_extent(segmentation, rle, width, height)
    edges = (max(x, 0), max(y, 0), min(x + w, width), min(y + h, height))
    apart = max(abs(one - other) for one, other in zip(edges, mask, strict=True))
    if apart > max(APART, APART_SHARE * max(w, h)):
        own = _numbers([x1, y1, x2 - x1, y2 - y1])
        note("disagree", f"the box is {box}, the box of the mask {own} (x, y, width, height)")
    return True


def _check_polygons(polygons: list, width: int, height: int, note) -> None:
    good = [polygon for polygon in polygons if is_polygon(polygon)]
    if len(good) < len(polygons):
        note("polygon_left_out", f"{len(polygons) - len(good)} of {len(polygons)} polygons")
    xs, ys = [x for p in good for x in p[0::2]], [y for p in good for y in p[1::2]]
    beyond = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
    if beyond > OUTSIDE:
        note("polygon_outside", f"a point lies {beyond:.4g} pixels beyond the image")


def _numbers(values) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _count(found: InstanceFindings) -> None:
    """Fill in the numbers of the classes, from usable images only."""
    by_id = {row.id: row for row in found.classes}
    for image in found.images:
        annotations = found.annotations[image["id"]]
        for annotation in annotations:
            row = by_id[annotation["category_id"]]
            if annotation.get("iscrowd"):
                row.crowds += 1
            else:
                box, area = annotation["bbox"], annotation.get("area")
                row.sizes.append(math.sqrt(area if _is_area(area) else box[2] * box[3]))
        for identity in {annotation["category_id"] for annotation in annotations}:
            by_id[identity].images += 1


def _is_area(area: Any) -> bool:
    return isinstance(area, (int, float)) and 0 < area < math.inf
