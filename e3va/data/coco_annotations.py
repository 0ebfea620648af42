"""Annotation records of COCO-format files: every value becomes what training and scoring need."""

import math
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import pycocotools.mask

from .coco_records import Images, Note, ReadOptions
from .coco_values import Fault, as_number, as_whole, show
from .masks import read_mask, to_rle

# Pixels; a side of a box that is shorter vanishes when the image is made smaller, in float32.
SHORTEST_SIDE = 0.01
LARGEST_AREA = 1e10  # pycocotools scores no larger objects
ROUNDING = 1.0  # pixels; a box that reaches at most this far beyond its image is not counted


def list_annotations(
    records: Sequence[dict],
    source: str | os.PathLike,
    images: Images,
    category_ids: Container[int],
    options: ReadOptions,
    note: Note,
) -> Iterator[tuple[Any, dict, dict]]:
    """Yield usable annotations as (id in the file, image record, annotation record).

    An annotation record has ``id`` (its number in the file, from 1), ``image_id``, ``category_id``,
    ``iscrowd`` (0 or 1), ``area`` (a positive float), ``bbox`` (four floats, inside the image) and,
    if ``options.masks`` is true, ``segmentation`` (lists of x1, y1, x2, y2, …; or RLE of the
    image's size). Annotations of missing images are left out if ``options.skip_missing``.
    """
    ids: set = set()
    for number, annotation in enumerate(records, 1):
        identity = annotation.get("id")
        image = images.find(annotation.get("image_id"))
        path = image["path"] if image else source

        def own(kind: str, text: str, place: tuple = (path, identity)) -> None:
            note(kind, *place, text)

        _check_id(identity, ids, own)
        if image is None:
            text = f"the image_id is {show(annotation.get('image_id'))}, which is not listed"
            own("unknown_image", text)
        elif not (options.skip_missing and image["id"] in images.missing):
            try:
                record, notes = _read(annotation, image, category_ids, options)
            except Fault as fault:
                own(fault.kind, str(fault))
                continue
            for kind, text in notes + _conversions(annotation, images):
                own(kind, text)
            yield identity, image, {"id": number, "image_id": image["id"], **record}


def _check_id(identity: Any, ids: set, own: Callable[[str, str], None]) -> None:
    """Warn of an id that is missing or appears twice; other ids are only numbered again."""
    if not isinstance(identity, int | float | str):
        own("annotation_twice", "the annotation has no integer id")
    elif identity in ids:
        own("annotation_twice", "another annotation has the same id")
    else:
        ids.add(identity)


def _read(
    annotation: dict, image: dict, category_ids: Container[int], options: ReadOptions
) -> tuple[dict, list[tuple[str, str]]]:
    """Return a record with usable values, and the kinds and texts of what was converted.

    Raises:
        Fault: the annotation cannot be used.
    """
    category, given = as_whole(annotation.get("category_id")), annotation.get("category_id")
    if category is None or category not in category_ids:
        known = show(list(category_ids))
        raise Fault(
            "unknown_category", f"the category_id is {show(given)}, expected one of {known}"
        )
    box, beyond = _read_box(annotation.get("bbox"), image)
    crowd, notes = _read_crowd(annotation.get("iscrowd")), []
    if beyond > ROUNDING:
        text = f"the box {show(annotation['bbox'])} reaches {beyond:.4g} pixels beyond the image"
        notes.append(("outside", text))
    record = {"category_id": category, "iscrowd": crowd, "area": 0.0, "bbox": box}
    if crowd and options.use_crowds:
        record["iscrowd"] = 0
        notes.append(("crowd_used", "iscrowd is 1"))
    if options.masks:
        mask = read_mask(annotation.get("segmentation"), image["height"], image["width"])
        record["segmentation"] = mask.segmentation
        if mask.converted:
            notes.append(("mask_form", f"the mask is {show(annotation['segmentation'])}"))
        if mask.ignored:
            count = mask.ignored + len(mask.segmentation)
            notes.append(("polygon_left_out", f"{mask.ignored} of {count} polygons"))
    area = annotation.get("area")
    record["area"] = _read_area(area, record, image)
    if area is not None and record["area"] != as_number(area):
        text = f"the area is {show(area)}, replaced by {record['area']:.6g}"
        notes.append(("area", text))
    return record, notes


def _conversions(annotation: dict, images: Images) -> list[tuple[str, str]]:
    """Return a note if numbers of a usable annotation are written in another form."""
    usual = {
        "image_id": (int, str) if images.numbered else (int,),
        "category_id": (int,),
        "iscrowd": (int, type(None)),
    }
    values = {key: annotation.get(key) for key in usual}
    other = {key: value for key, value in values.items() if type(value) not in usual[key]}
    if as_number(area := annotation.get("area")) is not None and isinstance(area, str):
        other["area"] = area
    if any(isinstance(value, str) for value in annotation["bbox"]):
        other["bbox"] = annotation["bbox"]
    text = ", ".join(f"{key} {show(value)}" for key, value in other.items())
    return [("number", text)] if other else []


def _read_box(box: Any, image: dict) -> tuple[list[float], float]:
    """Return a box clipped to the image, and how many pixels it reached beyond the image.

    Training and predictions use boxes inside the image, so that scoring has to use them too.
    """
    numbers = [as_number(v) for v in box] if isinstance(box, list) and len(box) == 4 else [None]
    if None in numbers:
        text = f"the bbox is {show(box)}, expected [x, y, width, height] in pixels"
        raise Fault("box", text)
    x, y, w, h = numbers
    width, height = image["width"], image["height"]
    beyond = max(-x, -y, x + w - width, y + h - height)
    (x, w), (y, h) = _clip(x, w, width), _clip(y, h, height)
    if not all(map(math.isfinite, numbers)) or not min(w, h) >= SHORTEST_SIDE:
        raise Fault("no_area", f"the box {show(box)} has no area inside the image")
    return [x, y, w, h], beyond


def _clip(start: float, length: float, limit: int) -> tuple[float, float]:
    """Return the part of a range from 0 to ``limit``; a range inside stays to the bit."""
    if start >= 0 and start + length <= limit:
        return start, length
    first = max(start, 0.0)
    return first, min(start + length, limit) - first


def _read_crowd(crowd: Any) -> int:
    number = 0 if crowd is None else int(crowd) if isinstance(crowd, bool) else as_number(crowd)
    if number not in (0, 1):
        raise Fault("crowd", f"'iscrowd' is {show(crowd)}, expected 0 or 1")
    return int(number)


def _read_area(area: Any, record: dict, image: dict) -> float:
    """Return the area in the file, or else that of the mask, or else that of the box."""
    number = as_number(area)
    if number is not None and 0 < number <= LARGEST_AREA:
        return number
    if "segmentation" in record:
        rle = to_rle(record["segmentation"], image["height"], image["width"])
        return float(pycocotools.mask.area(rle))
    return record["bbox"][2] * record["bbox"][3]
