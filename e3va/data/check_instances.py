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
from .images import DecodedImage, decode_image, in_threads
from .masks import find_extent, to_rle
from .problems import Findings, Problems

OUTSIDE = 1.0  # pixels; a box or polygon may reach this far beyond its image
# Edges of a box and of its mask may differ by this many pixels, or by this share of the box's
# longer side, since people draw them by hand.
APART, APART_SHARE = 3.0, 0.1


@dataclass
class ClassCount:
    """Numbers of a class; ``sizes`` are √area in pixels of its objects that are no crowd."""

    id: Any
    name: str
    images: int = 0
    crowds: int = 0
    sizes: list[float] = field(default_factory=list)


@dataclass
class InstanceFindings(Findings):
    """Findings in a COCO-format file and its images.

    Attributes:
        data: content of the file.
        masks: whether the annotations have masks; otherwise they have boxes only.
        images: records of usable images in the file's order, with ``path`` added.
        annotations: usable annotations of each image id.
        classes: numbers of each class, by class index.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    masks: bool = True
    images: list[dict] = field(default_factory=list)
    annotations: dict[int, list[dict]] = field(default_factory=dict)
    classes: list[ClassCount] = field(default_factory=list)

    @property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id."""
        return {row.id: index for index, row in enumerate(self.classes)}


def kind_of_file(data: Mapping[str, Any]) -> str:
    """Return the content of a COCO-format file: ``panoptic``, ``keypoints`` or ``instances``."""
    for kind, key, mark in (
        ("panoptic", "annotations", "segments_info"),
        ("keypoints", "categories", "keypoints"),
    ):
        records = data.get(key)
        if isinstance(records, list) and any(isinstance(r, dict) and mark in r for r in records):
            return kind
    return "instances"


def check_instances(
    data: Mapping[str, Any], source: str | Path, root: str | Path
) -> InstanceFindings:
    """Check an annotation file and decode all of its images.

    Args:
        data: content of the file, see :func:`e3va.data.coco.load_json`.
        source: path of the file, for messages.
        root: folder of the images; ``file_name`` entries are relative to it.

    Raises:
        UserError: the file lacks its list of images, annotations or categories, or is panoptic.
    """
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
        if names[row.name] > 1:
            text = f"{names[row.name]} classes have the name {row.name!r}"
            note("name_twice", source, row.id, text)
    images = list_images(data, source, Path(root), note)
    found.listed, found.images = len(data["images"]), list(images.values())
    found.annotations = {identity: [] for identity in images}
    records = list_records(data, "annotations", source)
    found.masks = not records or any(a.get("segmentation") for a in records)
    for _, image, annotation in list_annotations(
        data, source, images, found.class_index, found.masks, note
    ):
        found.annotations[image["id"]].append(annotation)
    _decode_images(found)
    _count(found)
    for row in found.classes:
        if not row.sizes and not row.crowds:
            note("unused", source, row.id, f"no object of the class {row.name!r}")
    if not any(row.sizes for row in found.classes):
        note("nothing", source, None, "no usable object")
    return found


def _decode_images(found: InstanceFindings) -> None:
    def work(image: dict) -> tuple[bool, list[dict], Problems]:
        problems = Problems()
        if not Path(image["path"]).is_file():
            problems.note("missing", image["path"], image["id"], "the file does not exist")
            return False, [], problems
        shapes = found.annotations[image["id"]]
        usable = [a for a in shapes if _check_shape(a, image, problems)]
        decoded, stated = decode_image(image["path"]), (image["width"], image["height"])
        is_usable = note_decoded(decoded, image["path"], problems, image["id"], stated)
        return is_usable, usable, problems

    kept = []
    results = in_threads(work, found.images, "checking images")
    for image, (is_usable, annotations, problems) in zip(found.images, results, strict=True):
        found.problems += problems
        found.annotations[image["id"]] = annotations
        if is_usable:
            kept.append(image)
    found.images = kept


def note_decoded(
    image: DecodedImage, path: str, problems: Problems, identity: Any = None, stated: Any = None
) -> bool:
    """Note the problems of a decoded image, and return whether it can be used.

    Args:
        image: the decoded image.
        path: its file.
        problems: the problems to add to.
        identity: its id, if it has one.
        stated: width and height in its record, if it has one.
    """
    if image.size is None:
        problems.note("undecodable", path, identity, image.fault)
        return False
    width, height = image.size
    if stated not in (None, image.size):
        text = f"the image is {width}×{height}, its record says {stated[0]}×{stated[1]}"
        if image.stored_size == stated:
            text += ", its size before its EXIF orientation is applied"
        problems.note("image_size", path, identity, text)
        return False
    if image.orientation != 1:
        text = f"EXIF orientation {image.orientation}: the upright image is {width}×{height}"
        problems.note("turned", path, identity, text)
    return True


def _check_shape(annotation: dict, image: dict, problems: Problems) -> bool:
    """Note the problems of an annotation's box and mask; return whether the mask can be read."""
    width, height = image["width"], image["height"]

    def note(kind: str, text: str) -> None:
        problems.note(kind, image["path"], annotation.get("id"), text)

    if not _is_area(annotation.get("area", 1)):
        note("area", f"the area is {annotation['area']!r}")
    x, y, w, h = annotation["bbox"]
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > OUTSIDE:
        text = (
            f"the box {_numbers(annotation['bbox'])} reaches {beyond:.4g} pixels beyond the image"
        )
        note("outside", text)
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
        box, own = _numbers(annotation["bbox"]), _numbers([x1, y1, x2 - x1, y2 - y1])
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
    index = found.class_index
    for image in found.images:
        rows = [found.classes[index[a["category_id"]]] for a in found.annotations[image["id"]]]
        for row, annotation in zip(rows, found.annotations[image["id"]], strict=True):
            if annotation.get("iscrowd"):
                row.crowds += 1
            else:
                box, area = annotation["bbox"], annotation.get("area")
                row.sizes.append(math.sqrt(area if _is_area(area) else box[2] * box[3]))
        for row in {id(row): row for row in rows}.values():
            row.images += 1


def _is_area(area: Any) -> bool:
    return isinstance(area, (int, float)) and 0 < area < math.inf
