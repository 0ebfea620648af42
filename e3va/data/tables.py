"""What was found, as tables for people and as numbers for programs."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from ..utils.tables import columns
from .check import ClassCount, Instances
from .label_maps import IGNORED
from .labels import LabelMaps

SMALL, LARGE = 32, 96  # √area in pixels, the borders of COCO's small, medium and large objects
_WIDEST = 40  # characters of a column


def instances_text(found: Instances) -> str:
    """Counts, the table of classes, sizes of objects and images."""
    numbers = instances_numbers(found)
    crowds = f" and {numbers['crowds']} crowd regions" if numbers["crowds"] else ""
    parts = [
        f"{found.source}\n  images in {found.root}",
        f"  {numbers['images']} usable images of {found.listed} listed: "
        f"{numbers['annotated']} annotated, {numbers['empty']} empty",
        f"  {numbers['objects']} objects{crowds}, {len(found.classes)} classes; "
        + ("masks and boxes" if found.masks else "boxes alone, no masks"),
        *_sizes_text([(i["width"], i["height"]) for i in found.images]),
    ]
    head = ("id", "class", "objects", "of all", "images", "crowds", "median", "min", "max")
    rows = [_class_row(row, numbers["objects"]) for row in found.classes]
    table = columns((*head, "small", "medium", "large"), rows, "><" + 10 * ">", _WIDEST)
    note = f"  median, min, max: √area in pixels; small below {SMALL}², large from {LARGE}² (COCO)"
    return "\n".join([*parts, "", *table, note])


def instances_numbers(found: Instances) -> dict[str, Any]:
    """The same as numbers."""
    annotated = sum(bool(found.annotations[image["id"]]) for image in found.images)
    return {
        "source": found.source,
        "listed": found.listed,
        "images": len(found.images),
        "annotated": annotated,
        "empty": len(found.images) - annotated,
        "objects": sum(len(row.sizes) for row in found.classes),
        "crowds": sum(row.crowds for row in found.classes),
        "classes": [
            {"id": row.id, "name": row.name, "objects": len(row.sizes), "images": row.images}
            | {"crowds": row.crowds, **_by_size(row.sizes)}
            for row in found.classes
        ],
    }


def _class_row(row: ClassCount, objects: int) -> tuple[Any, ...]:
    sizes = row.sizes
    numbers = [median(sizes), min(sizes), max(sizes)] if sizes else []
    return (
        *(row.id, row.name, len(sizes), percent(len(sizes), objects), row.images, row.crowds),
        *([f"{number:.0f}" for number in numbers] or ["–"] * 3),
        *_by_size(sizes).values(),
    )


def _by_size(sizes: Sequence[float]) -> dict[str, int]:
    small = sum(size < SMALL for size in sizes)
    large = sum(size >= LARGE for size in sizes)
    return {"small": small, "medium": len(sizes) - small - large, "large": large}


def labels_text(found: LabelMaps) -> str:
    """Counts, the table of classes, the share of pixels without one, sizes of images."""
    numbers = labels_numbers(found)
    total = int(found.pixels.sum())
    ignored, missing = int(found.pixels[IGNORED]), ["no images given"]
    parts = [
        f"{found.source}\n  {f'images in {found.root}' if found.root else missing[0]}",
        f"  {numbers['images']} usable label maps of {found.listed}: "
        f"{total:,} pixels, {len(found.names)} classes",
        f"  unlabelled ({IGNORED}): {percent(ignored, total)} of the pixels, "
        f"in {int(found.images[IGNORED])} maps",
        *_sizes_text([size for _, size in found.pairs]),
    ]
    rows = [
        (label, name, f"{found.pixels[label]:,}", percent(found.pixels[label], total))
        + (int(found.images[label]), percent(found.images[label], len(found.pairs)))
        for label, name in enumerate(found.names)
    ]
    head = ("label", "class", "pixels", "of all", "images", "of images")
    return "\n".join([*parts, "", *columns(head, rows, "><>>>>", _WIDEST)])


def labels_numbers(found: LabelMaps) -> dict[str, Any]:
    """The same as numbers."""
    return {
        "source": found.source,
        "listed": found.listed,
        "images": len(found.pairs),
        "unlabelled_pixels": int(found.pixels[IGNORED]),
        "classes": [
            {"label": label, "name": name, "pixels": int(found.pixels[label])}
            | {"images": int(found.images[label])}
            for label, name in enumerate(found.names)
        ],
    }


def _sizes_text(sizes: list[tuple[int, int]]) -> list[str]:
    if not sizes:
        return []
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    if ordered[0] == ordered[-1]:
        text = f"all {ordered[0][0]}×{ordered[0][1]}"
    else:
        three = (ordered[0], ordered[len(ordered) // 2], ordered[-1])
        text = "min {}×{}, median {}×{}, max {}×{}".format(*np.ravel(three).tolist())
    wide = sum(width > height for width, height in sizes)
    tall = sum(width < height for width, height in sizes)
    square = len(sizes) - wide - tall
    return [f"  image sizes: {text}; {wide} landscape, {tall} portrait, {square} square"]


def percent(part: float, whole: float) -> str:
    """A share for people."""
    return f"{100 * part / whole:.1f}%" if whole else "–"
