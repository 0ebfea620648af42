"""A COCO-format file and its images, checked whole: no problem hides another.

Whether an annotation can be used is decided where training decides it, in :mod:`e3va.data.coco`; what
only shows when an image or a mask is opened is added here.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from .coco import find_category_fault, find_fault, find_image_fault, is_polygon, list_records
from .images import Seen, in_threads, look_at
from .masks import extent, pixels, to_rle
from .problems import Problems

OUTSIDE = 1.0  # pixels by which a box or polygon may reach out of its image
# Edges of a box and of its mask may lie apart by so many pixels, or this share of the box's longer
# side: annotators draw by hand.
APART, APART_SHARE = 3.0, 0.1

_KINDS = {
    "category": "unknown_category",
    "area": "no_area",
}  # of e3va.data.coco.Fault, where renamed


@dataclass
class ClassCount:
    """What there is of a class; ``sizes`` are √area in pixels, of objects that are no crowd."""

    id: Any
    name: str
    images: int = 0
    crowds: int = 0
    sizes: list[float] = field(default_factory=list)


@dataclass
class Instances:
    """A checked annotation file.

    Attributes:
        source, root: the file and the folder of its images.
        masks: whether its annotations have masks; boxes alone otherwise.
        listed: how many image records there are.
        images: records of the images that can be used, in the file's order; ``path`` is added.
        annotations: the usable annotations of each image id.
        classes: by class index.
        problems: all that was found.
    """

    source: str
    root: str
    masks: bool = True
    listed: int = 0
    images: list[dict] = field(default_factory=list)
    annotations: dict[int, list[dict]] = field(default_factory=dict)
    classes: list[ClassCount] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    @property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id."""
        return {row.id: index for index, row in enumerate(self.classes)}


def kind_of_file(data: Mapping[str, Any]) -> str:
    """``panoptic``, ``keypoints`` or ``instances``: what a COCO-format file holds."""
    annotations, categories = data.get("annotations"), data.get("categories")
    if isinstance(annotations, list) and any("segments_info" in a for a in _dicts(annotations)):
        return "panoptic"
    if isinstance(categories, list) and any("keypoints" in c for c in _dicts(categories)):
        return "keypoints"
    return "instances"


def _dicts(records: list) -> list[dict]:
    return [record for record in records if isinstance(record, dict)]


def check_instances(data: Mapping[str, Any], source: str | Path, root: str | Path) -> Instances:
    """Check an annotation file and open all of its images.

    Args:
        data: what is in the file, see :func:`e3va.data.coco.load_json`.
        source: the file, for messages.
        root: the folder that its ``file_name`` entries are relative to.

    Raises:
        UserError: it has no lists of images, annotations and categories at all, or is panoptic.
    """
    if kind_of_file(data) == "panoptic":
        raise UserError(_panoptic(data, source))
    found = Instances(str(source), str(root))
    _read_categories(data, found)
    by_id = _read_images(data, found)
    _read_annotations(data, found, by_id)
    _open_images(found)
    _count(found)
    for row in found.classes:
        if not row.sizes and not row.crowds:
            found.problems.note("unused", source, row.id, f"no object of the class {row.name!r}")
    if not any(row.sizes for row in found.classes):
        found.problems.note("nothing", source, None, "no usable object")
    return found


def _panoptic(data: Mapping[str, Any], source: str | Path) -> str:
    annotations = _dicts(data["annotations"])
    segments = sum(len(a.get("segments_info") or ()) for a in annotations)
    return (
        f"{source} is a COCO panoptic file ({len(annotations)} images, {segments} segments): "
        "expected instances; give the instances_*.json beside it, and for its stuff a folder of "
        "label maps"
    )


def _read_categories(data: Mapping[str, Any], found: Instances) -> None:
    note, rows, names = found.problems.note, {}, Counter()
    categories = list_records(data, "categories", found.source)
    if not categories:
        note("category", found.source, None, "'categories' is empty")
    for category in categories:
        identity = category.get("id")
        fault = find_category_fault(category)
        if fault:
            note("category", found.source, identity, fault)
        elif identity in rows:
            text = f"is both {rows[identity].name!r} and {category['name']!r}"
            note("category_twice", found.source, identity, text)
        else:
            rows[identity] = ClassCount(identity, str(category["name"]))
            names[str(category["name"])] += 1
    found.classes = [rows[identity] for identity in sorted(rows)]
    for row in found.classes:
        if names[row.name] > 1:
            text = f"the name {row.name!r} stands for {names[row.name]} classes"
            note("name_twice", found.source, row.id, text)


def _read_images(data: Mapping[str, Any], found: Instances) -> dict[int, dict]:
    note, by_id, names = found.problems.note, {}, {}
    records = list_records(data, "images", found.source)
    found.listed = len(records)
    if not records:
        note("no_images", found.source, None, "'images' is empty")
    for record in records:
        fault = find_image_fault(record)
        if fault:
            note("image_record", found.source, record.get("id"), fault)
            continue
        identity, name = record["id"], record["file_name"]
        path = str(Path(found.root) / name)
        if identity in by_id:
            text = f"has the id of {by_id[identity]['file_name']!r}"
            note("image_twice", path, identity, text)
            continue
        if names.setdefault(name, identity) != identity:
            note("file_twice", path, identity, f"is also the image of id {names[name]}")
        by_id[identity] = {**record, "path": path}
    found.images = list(by_id.values())
    found.annotations = {identity: [] for identity in by_id}
    return by_id


def _read_annotations(data: Mapping[str, Any], found: Instances, by_id: dict[int, dict]) -> None:
    records = list_records(data, "annotations", found.source)
    found.masks = not records or any(a.get("segmentation") for a in records)
    note, class_index, ids = found.problems.note, found.class_index, set()
    for annotation in records:
        identity, image_id = annotation.get("id"), annotation.get("image_id")
        image = by_id.get(image_id) if isinstance(image_id, (int, float, str)) else None
        place = image["path"] if image else found.source
        if not isinstance(identity, int) or identity in ids:
            text = "has no id" if identity is None else f"has the id {identity!r} as another has"
            note("annotation_twice", place, identity, text)
        if isinstance(identity, int):
            ids.add(identity)
        if image is None:
            note("unknown_image", place, identity, f"is of the image {image_id!r}")
            continue
        fault = find_fault(annotation, image, class_index, found.masks)
        if fault is None:
            found.annotations[image["id"]].append(annotation)
        else:
            text = f"{fault.text}: {annotation['bbox']}" if fault.kind == "area" else fault.text
            note(_KINDS.get(fault.kind, fault.kind), place, identity, text)


def _open_images(found: Instances) -> None:
    def work(image: dict) -> tuple[Seen, Problems, list[dict]]:
        if not Path(image["path"]).is_file():
            return Seen(None, fault="missing"), Problems(), []
        problems, usable = Problems(), []
        for annotation in found.annotations[image["id"]]:
            if _check_shape(annotation, image, problems):
                usable.append(annotation)
        return look_at(image["path"]), problems, usable

    kept = []
    for image, (seen, problems, usable) in zip(
        found.images, in_threads(work, found.images, "checking images"), strict=True
    ):
        found.problems += problems
        found.annotations[image["id"]] = usable
        if _check_file(image, seen, found.problems):
            kept.append(image)
    found.images = kept


def _check_file(image: dict, seen: Seen, problems: Problems) -> bool:
    """Note what is wrong with the file; whether it can be used."""
    path, identity, stated = image["path"], image["id"], (image["width"], image["height"])
    if seen.fault == "missing":
        problems.note("missing", path, identity, "is not there")
    elif seen.size is None:
        problems.note("undecodable", path, identity, seen.fault)
    elif seen.size != stated:
        text = f"is {seen.size[0]}×{seen.size[1]}, stated is {stated[0]}×{stated[1]}"
        if seen.stored == stated:
            text += ", its size before EXIF data turn it"
        problems.note("image_size", path, identity, text)
    else:
        if seen.orientation != 1:
            note_turned(path, identity, seen, problems)
        return True
    return False


def note_turned(path: str, identity: Any, seen: Seen, problems: Problems) -> None:
    """Note that EXIF data turn an image."""
    text = f"EXIF orientation {seen.orientation}: it is {seen.size[0]}×{seen.size[1]} when turned"
    problems.note("turned", path, identity, text)


def _check_shape(annotation: dict, image: dict, problems: Problems) -> bool:
    """Note what is wrong with a usable annotation's box and mask; whether the mask can be read."""
    width, height = image["width"], image["height"]

    def note(kind: str, text: str) -> None:
        problems.note(kind, image["path"], annotation.get("id"), text)

    area = annotation.get("area", 1)
    if not isinstance(area, (int, float)) or not 0 < area < math.inf:
        note("area", f"the area is {area!r}")
    x, y, w, h = annotation["bbox"]
    beyond = max(-x, -y, x + w - width, y + h - height)
    if beyond > OUTSIDE:
        note("outside", f"{_numbers(annotation['bbox'])} reaches {beyond:.4g} pixels out")
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
    if not pixels(rle):
        note("empty_mask", "no pixel is inside its mask")
    else:
        _compare(annotation, extent(segmentation, rle, width, height), (width, height), note)
    return True


def _check_polygons(polygons: list, width: int, height: int, note) -> None:
    good = [p for p in polygons if is_polygon(p)]
    if len(good) < len(polygons):
        note("polygon_left_out", f"{len(polygons) - len(good)} of its {len(polygons)} polygons")
    xs, ys = [x for p in good for x in p[0::2]], [y for p in good for y in p[1::2]]
    beyond = max(-min(xs), -min(ys), max(xs) - width, max(ys) - height)
    if beyond > OUTSIDE:
        note("polygon_outside", f"a point is {beyond:.4g} pixels out")


def _compare(annotation: dict, mask: tuple[float, ...], size: tuple[int, int], note) -> None:
    x, y, w, h = annotation["bbox"]
    edges = (max(x, 0), max(y, 0), min(x + w, size[0]), min(y + h, size[1]))
    apart = max(abs(one - other) for one, other in zip(edges, mask, strict=True))
    if apart > max(APART, APART_SHARE * max(w, h)):
        x1, y1, x2, y2 = mask
        own = _numbers([x1, y1, x2 - x1, y2 - y1])
        note("disagree", f"box {_numbers(annotation['bbox'])}, mask {own} (x, y, width, height)")


def _numbers(values) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"


def _count(found: Instances) -> None:
    """Fill in the classes' counts, of usable images alone."""
    index, images = found.class_index, defaultdict(set)
    for image in found.images:
        for annotation in found.annotations[image["id"]]:
            row = found.classes[index[annotation["category_id"]]]
            images[row.id].add(image["id"])
            if annotation.get("iscrowd"):
                row.crowds += 1
            else:
                row.sizes.append(math.sqrt(_area(annotation)))
    for row in found.classes:
        row.images = len(images[row.id])


def _area(annotation: dict) -> float:
    """In pixels, as COCO's evaluation takes it; of the box where the file states none."""
    box = annotation["bbox"]
    area = annotation.get("area", box[2] * box[3])
    return area if isinstance(area, (int, float)) and 0 < area < math.inf else box[2] * box[3]
