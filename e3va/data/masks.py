"""Masks of annotations: reading, extents, and a check of run lengths."""

from typing import Any

import numpy as np
import pycocotools.mask

from .coco import is_polygon

# Largest distance of a polygon's point from the image, as a multiple of the image's longer side:
# pycocotools follows the edges point by point.
FARTHEST = 10


def to_rle(segmentation: Any, height: int, width: int) -> dict:
    """Convert polygons or RLE to compressed RLE; raise ValueError if run lengths are wrong."""
    if isinstance(segmentation, list):
        farthest = FARTHEST * max(height, width)
        points = [np.clip(p, -farthest, farthest).tolist() for p in segmentation if is_polygon(p)]
        return pycocotools.mask.merge(pycocotools.mask.frPyObjects(points, height, width))
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _decode_counts(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"the run lengths do not add up to {height} × {width} pixels")
    if isinstance(counts, list):
        return pycocotools.mask.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": counts.encode()}


def _decode_counts(text: str) -> list[int]:
    """Return the run lengths of a compressed RLE, which pycocotools would read unchecked.

    A character holds five bits, counted from "0"; a sixth bit says that more bits follow. From the
    fourth run on, a number is the difference to the run before the last one.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the RLE has the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the RLE ends in the middle of a number")
    return runs


def find_extent(segmentation: Any, rle: dict, width: int, height: int) -> tuple[float, ...]:
    """Return x1, y1, x2, y2 in pixels of polygons, clipped to the image, or of an RLE."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation if is_polygon(p)])
        points = points.clip(0, (width, height))
        return (*points.min(0).tolist(), *points.max(0).tolist())
    x, y, w, h = pycocotools.mask.toBbox(rle).tolist()
    return x, y, x + w, y + h
