"""Findings of a check as tables for people and as numbers for programs."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from ..utils.counts import counted
from ..utils.tables import columns
from .check_instances import ClassCount, InstanceFindings
from .check_label_maps import LabelMapFindings
from .images import Size
from .label_maps import IGNORED
from .problems import Findings

SMALL, LARGE = 32, 96  # √area in pixels, the limits of COCO's small, medium and large objects
_WIDEST = 40  # characters of a table's cell


def report_text(found: Findings) -> str:
    """Return lines for people: numbers of images, classes and objects, and their sizes."""
    return (_labels_text if isinstance(found, LabelMapFindings) else _instances_text)(found)


def report_numbers(found: Findings) -> dict[str, Any]:
    """Return the numbers of :func:`report_text`."""
    return (_labels_numbers if isinstance(found, LabelMapFindings) else _instances_numbers)(found)


def _instances_text(found: InstanceFindings) -> str:
    numbers = _instances_numbers(found)
    crowds = f" and {counted(numbers['crowds'], 'crowd region')}" if numbers["crowds"] else ""
    lines = [
        f"{found.source}\n  images in {found.root}",
        f"  {numbers['images']} usable images of {found.listed} listed: "
        f"{numbers['annotated']} annotated, {numbers['empty']} empty",
        f"  {counted(numbers['objects'], 'object')}{crowds}, "
        f"{counted(len(found.classes), 'class', 'classes')}; "
        + ("masks and boxes" if found.masks else "boxes only, no masks"),
        *_sizes_text([(image["width"], image["height"]) for image in found.images]),
    ]
    head = ("id", "class", "objects", "of all", "images", "crowds", "median", "min", "max")
    rows = [_class_row(row, numbers["objects"]) for row in found.classes]
    table = columns((*head, "small", "medium", "large"), rows, "><" + 10 * ">", _WIDEST)
    note = f"  median, min, max: √area in pixels; small below {SMALL}², large from {LARGE}² (COCO)"
    return "\n".join([*lines, "", *table, note])


def _instances_numbers(found: InstanceFindings) -> dict[str, Any]:
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
            | {"crowds": row.crowds, **_count_by_size(row.sizes)}
            for row in found.classes
        ],
    }


def _class_row(row: ClassCount, objects: int) -> tuple[Any, ...]:
    sizes = row.sizes
    numbers = [f"{f(sizes):.0f}" if sizes else "–" for f in (median, min, max)]
    counts = (len(sizes), _percent(len(sizes), objects), row.images, row.crowds)
    return (row.id, row.name, *counts, *numbers, *_count_by_size(sizes).values())


def _count_by_size(sizes: Sequence[float]) -> dict[str, int]:
    small, large = sum(size < SMALL for size in sizes), sum(size >= LARGE for size in sizes)
    return {"small": small, "medium": len(sizes) - small - large, "large": large}


def _labels_text(found: LabelMapFindings) -> str:
    pixels, images, total = found.pixels, found.images, int(found.pixels.sum())
    lines = [
        f"{found.source}\n  {f'images in {found.root}' if found.root else 'no images given'}",
        f"  {len(found.usable)} usable label maps of {found.listed}: "
        f"{total:,} pixels, {counted(len(found.names), 'class', 'classes')}",
        f"  unlabelled ({IGNORED}): {_percent(pixels[IGNORED], total)} of the pixels, "
        f"in {images[IGNORED]} maps",
        *_sizes_text([picture.size for picture in found.usable]),
    ]
    rows = [
        (label, name, f"{pixels[label]:,}", _percent(pixels[label], total))
        + (images[label], _percent(images[label], len(found.usable)))
        for label, name in enumerate(found.names)
    ]
    head = ("label", "class", "pixels", "of all", "images", "of images")
    return "\n".join([*lines, "", *columns(head, rows, "><>>>>", _WIDEST)])


def _labels_numbers(found: LabelMapFindings) -> dict[str, Any]:
    pixels, images = found.pixels.tolist(), found.images.tolist()
    return {
        "source": found.source,
        "listed": found.listed,
        "images": len(found.usable),
        "unlabelled_pixels": pixels[IGNORED],
        "classes": [
            {"label": label, "name": name, "pixels": pixels[label], "images": images[label]}
            for label, name in enumerate(found.names)
        ],
    }


def _sizes_text(sizes: list[Size]) -> list[str]:
    if not sizes:
        return []
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    shown = [ordered[0], ordered[len(sizes) // 2], ordered[-1]]
    least, middle, most = (f"{width}×{height}" for width, height in shown)
    text = f"all {least}" if least == most else f"min {least}, median {middle}, max {most}"
    wide, tall = sum(w > h for w, h in sizes), sum(w < h for w, h in sizes)
    square = len(sizes) - wide - tall
    return [f"  image sizes: {text}; {wide} landscape, {tall} portrait, {square} square"]


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "–"
