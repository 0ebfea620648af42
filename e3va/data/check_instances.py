"""Check a COCO-format file and its images as a whole, so that no problem hides another.

What is used, left out or converted is decided in :mod:`e3va.data.coco`, as for training. This
module adds the problems that only an opened image or a drawn mask shows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from .coco import Content, has_object, nothing_to_train, read_records
from .coco_annotations import ROUNDING
from .coco_records import ReadOptions, list_records
from .contact_sheet import Picture
from .images import check_image, in_threads
from .masks import find_extent, to_rle
from .problems import Findings, Problems

# Edges of a box and of its mask may differ by this many pixels, or by this share of the box's
# longer side, since people draw them by hand.
APART, APART_SHARE = 3.0, 0.1


AS_LISTED = ReadOptions(masks=None)  # masks are read if there are some


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
    data: Mapping[str, Any],
    source: str | Path,
    root: str | Path,
    options: ReadOptions = AS_LISTED,
) -> InstanceFindings:
    """Check the content of the annotation file ``source``, and decode its images below ``root``.

    ``options`` are those with which training will read the file.
    """
    if kind_of_file(data) == "panoptic":
        annotations = list_records(data, "annotations", source)
        lists = [a.get("segments_info") for a in annotations]
        segments = sum(len(own) for own in lists if isinstance(own, list))
        raise UserError(
            f"{source} is a COCO panoptic file ({len(annotations)} images, {segments} segments): "
            "expected instances; use the instances_*.json of the same images, and a folder of "
            "label maps for stuff classes"
        )
    found = InstanceFindings(str(source), str(root), data=data)
    note = found.problems.note
    content = read_records(data, source, Path(root), options, note)
    found.classes = [
        ClassCount(category["id"], category["name"]) for category in content.categories
    ]
    found.listed, found.masks = len(data["images"]), content.masks
    found.annotations = {image["id"]: [] for image in content.images.by_key.values()}
    for _, image, annotation in content.annotations:
        found.annotations[image["id"]].append(annotation)
    _check_images(found, content)
    _count(found)
    for row in found.classes:
        if not row.sizes and not row.crowds:
            note("unused", source, row.id, f"no object of the class {row.name!r}")
    if not any(row.sizes for row in found.classes):
        crowds = sum(row.crowds for row in found.classes)
        text = nothing_to_train(crowds, found.problems.counts())
        note("nothing", source, None, f"the file has {text}")
        return found
    for image in found.images:
        if not has_object(found.annotations[image["id"]]):
            note("empty", image["path"], image["id"], "no object, or only crowd regions")
    return found


def _check_images(found: InstanceFindings, content: Content) -> None:
    """Decode the images, fill in the usable ones, and note the problems of their annotations."""
    by_image: dict[int, list[tuple[Any, dict]]] = {}
    for identity, image, annotation in content.annotations:
        by_image.setdefault(image["id"], []).append((identity, annotation))

    def work(image: dict) -> tuple[bool, Problems]:
        problems, path = Problems(), image["path"]
        for identity, annotation in by_image.get(image["id"], ()):
            _check_shape(annotation, identity, image, problems)
        size = check_image(path, problems, image["id"], (image["width"], image["height"]))
        return size is not None, problems

    images = content.images.present
    results = in_threads(work, images, "checking images")
    for image, (is_usable, problems) in zip(images, results, strict=True):
        found.problems += problems
        if is_usable:
            found.images.append(image)


def _check_shape(annotation: dict, identity: Any, image: dict, problems: Problems) -> None:
    """Note where the box and the mask of an annotation look wrong."""
    width, height = image["width"], image["height"]

    def note(kind: str, text: str) -> None:
        problems.note(kind, image["path"], identity, text)

    x, y, w, h = annotation["bbox"]
    box = _numbers(annotation["bbox"])
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return
    if isinstance(segmentation, list):
        _check_polygons(segmentation, width, height, note)
    rle = to_rle(segmentation, height, width)
    x1, y1, x2, y2 = mask = find_extent(segmentation, rle, width, height)
    edges = (x, y, x + w, y + h)
    apart = max(abs(one - other) for one, other in zip(edges, mask, strict=True))
    if apart > max(APART, APART_SHARE * max(w, h)):
        own = _numbers([x1, y1, x2 - x1, y2 - y1])
        note("disagree", f"the box is {box}, the box of the mask {own} (x, y, width, height)")


def _check_polygons(polygons: list, width: int, height: int, note) -> None:
    xs, ys = [x for p in polygons for x in p[0::2]], [y for p in polygons for y in p[1::2]]
    beyond = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
    if beyond > ROUNDING:
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
            if annotation["iscrowd"]:
                row.crowds += 1
            else:
                row.sizes.append(math.sqrt(annotation["area"]))
        for identity in {annotation["category_id"] for annotation in annotations}:
            by_id[identity].images += 1
