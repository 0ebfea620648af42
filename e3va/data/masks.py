"""Masks of annotations: every form that tools write, conversion to RLE, and extents."""

import math
from collections.abc import Iterator
from operator import mul
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask

from .coco_values import Fault, as_number, as_whole, show

# Largest distance of a point from the image's corner, as a multiple of the image's longer side:
# pycocotools follows the edges point by point, and float32 has few digits for coordinates.
FARTHEST = 10
DEEPEST = 4  # levels of lists in polygons; the format has two
# Pixels; a polygon has a pixel if it lies in the image, and its area divided by its longer side is
# at least this. The largest quotient of a polygon without a pixel, among random ones, was 0.9.
THICK = 2.0
LONGEST = 6  # characters of a number in a compressed RLE; pycocotools would shift beyond 32 bits


class Mask(NamedTuple):
    """A mask that was read from an annotation."""

    segmentation: list[list[float]] | dict  # polygons of at least three points, or a valid RLE
    converted: bool = False  # whether it was written in another form
    ignored: int = 0  # number of polygons that were left out


def has_mask(segmentation: Any, levels: int = DEEPEST) -> bool:
    """Return whether a segmentation is more than None or empty text, lists and dicts."""
    if isinstance(segmentation, list):
        return not levels or any(has_mask(part, levels - 1) for part in segmentation)
    return segmentation is not None and segmentation not in ("", {})


def read_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Read the mask of an object in an image of ``height`` × ``width`` pixels.

    Polygons may be flat, nested too deeply, or lists of [x, y]; numbers may be text.

    Raises:
        Fault: there is no mask, it has no usable polygon or no pixel, or its RLE does not fit the
            image.
    """
    mask = _read(segmentation, height, width)
    if isinstance(mask.segmentation, list) and not _has_pixel(mask.segmentation, height, width):
        raise Fault("empty_mask", "no pixel of the image lies in the polygons")
    return mask


def _read(segmentation: Any, height: int, width: int) -> Mask:
    farthest = FARTHEST * max(height, width)
    usual = isinstance(segmentation, list) and segmentation != []
    if usual and all(type(part) is list and _is_usual(part, farthest) for part in segmentation):
        return Mask(segmentation)
    if not has_mask(segmentation):
        text = "there is no 'segmentation', expected polygons or RLE, since the model learns masks"
        raise Fault("no_mask", text)
    if isinstance(segmentation, dict):
        return _read_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        kind = type(segmentation).__name__
        raise Fault("mask", f"the 'segmentation' is a {kind}, expected polygons or RLE")
    if len(segmentation) == 1 and isinstance(segmentation[0], dict):
        return _read_rle(segmentation[0], height, width)._replace(converted=True)
    return _read_polygons(segmentation, farthest)


def _depth(shape: Any, limit: int = DEEPEST + 1) -> int:
    """Return the number of levels of lists, at most ``limit``."""
    if not isinstance(shape, list) or not limit:
        return 0
    return 1 + max((_depth(part, limit - 1) for part in shape if isinstance(part, list)), default=0)


def _read_polygons(shape: list, farthest: float) -> Mask:
    if _depth(shape) > DEEPEST:
        raise Fault("mask", f"the 'segmentation' has more than {DEEPEST} levels of lists")
    if any(isinstance(part, dict) for part in shape):
        raise Fault(
            "mask", "the 'segmentation' is a list with a dict, expected polygons or one RLE"
        )
    rows = list(_rows(shape))
    polygons = [(row, _read_polygon(row, farthest)) for row in rows]
    good = [polygon for _, polygon in polygons if polygon]
    if not good:
        raise Fault("polygons", "no polygon has three points or more")
    as_text = any(isinstance(value, str) for row, good in polygons if good for value in row)
    return Mask(good, rows != shape or as_text, len(rows) - len(good))


def _is_usual(points: list, farthest: float) -> bool:
    """Return whether a polygon can stay as it is; this is fast, since nearly all of them can."""
    return (
        len(points) >= 6
        and len(points) % 2 == 0
        and set(map(type, points)) <= {int, float}
        and -farthest <= min(points) <= max(points) <= farthest
        and math.isfinite(sum(points))  # comparisons with NaN depend on the order
    )


def _has_pixel(polygons: list[list[float]], height: int, width: int) -> bool:
    """Return whether polygons have a pixel; they are drawn only if they are thin or reach out."""
    for points in polygons:
        xs, ys = points[::2], points[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
        if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
            doubled = sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))
            if abs(doubled) >= 2 * THICK * max(x2 - x1, y2 - y1, THICK):
                return True
    return bool(pycocotools.mask.area(to_rle(polygons, height, width)))


def _rows(shape: list) -> Iterator[list]:
    """Yield the polygons in nested lists, each as one flat list."""
    nested = [part for part in shape if isinstance(part, list)]
    if not nested:
        yield shape
    elif len(nested) == len(shape) and all(map(_is_point, nested)):
        yield [value for point in nested for value in point]
    else:
        for part in shape:
            yield from _rows(part) if isinstance(part, list) else [[part]]


def _is_point(part: list) -> bool:
    return len(part) == 2 and all(as_number(value) is not None for value in part)


def _read_polygon(row: list, farthest: float) -> list[float] | None:
    numbers = [as_number(value) for value in row]
    if len(row) < 6 or len(row) % 2 or None in numbers or not all(map(math.isfinite, numbers)):
        return None
    return [min(max(number, -farthest), farthest) for number in numbers]


def _read_rle(rle: dict, height: int, width: int) -> Mask:
    counts, size = rle.get("counts"), rle.get("size")
    if not isinstance(counts, list | str | bytes):
        keys = f"a dict with the keys {show(list(rle))}"
        raise Fault("mask", f"the 'segmentation' is {keys}, expected polygons or RLE with 'counts'")
    own_size = [as_whole(side) for side in size] if isinstance(size, list) else size
    if own_size != [height, width]:
        text = f"the RLE has the size {show(size)}, expected the image's {[height, width]}"
        raise Fault("mask", text)
    converted = set(map(type, size)) != {int}
    if isinstance(counts, list):
        runs = [as_whole(run) for run in counts]
        converted |= set(map(type, counts)) != {int}
        counts = runs
    try:
        pixels = _count_pixels(counts, height, width)
    except ValueError as error:
        raise Fault("mask", str(error)) from None
    if not pixels:
        raise Fault("empty_mask", "the mask has no pixel")
    counts = counts.decode() if isinstance(counts, bytes) else counts
    return Mask({"size": own_size, "counts": counts}, converted)


def to_rle(segmentation: Any, height: int, width: int) -> dict:
    """Convert polygons or RLE to compressed RLE, whose ``counts`` are bytes.

    Raises:
        ValueError: the run lengths are wrong; pycocotools would read beyond its memory.
    """
    if isinstance(segmentation, list):
        farthest = FARTHEST * max(height, width)
        points = [np.clip(p, -farthest, farthest).tolist() for p in segmentation if is_polygon(p)]
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(points, height, width))
    counts = segmentation["counts"]
    _count_pixels(counts, height, width)
    if isinstance(counts, list):
        size = [height, width]
        return pycocotools.mask.frPyObjects({"size": size, "counts": counts}, height, width)
    return {
        "size": [height, width],
        "counts": counts.encode() if isinstance(counts, str) else counts,
    }


def _count_pixels(counts: list | str | bytes, height: int, width: int) -> int:
    """Return the number of pixels in the mask of an RLE.

    Raises:
        ValueError: the run lengths are not whole numbers that add up to the image's pixels.
    """
    if isinstance(counts, list):
        usable, runs = all(type(run) is int and run >= 0 for run in counts), counts
        total, pixels = (sum(runs), sum(runs[1::2])) if usable else (None, 0)
    else:
        runs = decode_counts(counts)
        usable = not (runs < 0).any()
        total, pixels = int(runs.sum()), int(runs[1::2].sum())
    if not usable or total != height * width:
        raise ValueError(f"the run lengths do not add up to {height} × {width} pixels")
    return pixels


def decode_counts(text: str | bytes) -> np.ndarray:
    """Return the run lengths [N] int64 of a compressed RLE, which pycocotools reads unchecked.

    A character holds five bits, counted from "0"; a sixth bit says that more bits follow. From the
    fourth run on, a number is the difference to the run before the last one.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    bits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if ((bits < 0) | (bits >= 64)).any():
        raise ValueError("the RLE has a character that stands for no number")
    if not len(bits):
        return bits
    last = bits & 32 == 0
    if not last[-1]:
        raise ValueError("the RLE ends in the middle of a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST:
        raise ValueError(f"the RLE has a number of more than {5 * LONGEST} bits")
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((bits & 31) << shifts, starts)
    runs -= np.where(bits[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def is_polygon(points: Any) -> bool:
    """Return whether ``points`` is [x1, y1, x2, y2, …] with at least three points, all finite."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(type(value) in (int, float) and math.isfinite(value) for value in points)
    )


def find_extent(segmentation: Any, rle: dict, width: int, height: int) -> tuple[float, ...]:
    """Return x1, y1, x2, y2 in pixels of polygons, clipped to the image, or of an RLE."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        points = points.clip(0, (width, height))
        return (*points.min(0).tolist(), *points.max(0).tolist())
    x, y, w, h = pycocotools.mask.toBbox(rle).tolist()
    return x, y, x + w, y + h
