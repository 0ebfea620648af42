"""Masks of annotations: whether they can be read, how many pixels they have, where they lie."""

from typing import Any

import numpy as np

from ..utils.optional import require
from .coco import is_polygon

# How many images wide a polygon may reach: its edges are followed point by point.
FAR = 10


def to_rle(segmentation: Any, height: int, width: int) -> dict:
    """Polygons or RLE, compressed or not, as pycocotools' compressed RLE.

    Raises:
        ValueError: the runs of an RLE do not make up the image.
    """
    mask_util = require("pycocotools.mask", "reading masks")
    if isinstance(segmentation, list):
        far = FAR * max(height, width)
        polygons = [np.clip(p, -far, far).tolist() for p in segmentation if is_polygon(p)]
        return mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _decode_counts(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"its RLE's runs do not add up to {height} × {width} pixels")
    if isinstance(counts, list):
        return mask_util.frPyObjects(segmentation, height, width)
    return {"size": [height, width], "counts": counts.encode()}


def _decode_counts(text: str) -> list[int]:
    """Runs of a compressed RLE: 5 bits a character above "0", the sixth says that more follow;
    from the third run on, the difference to the run before the last."""
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its RLE has the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its RLE is cut off")
    return runs


def pixels(rle: dict) -> int:
    """Pixels of a mask."""
    return int(require("pycocotools.mask", "reading masks").area(rle))


def decode(rle: dict) -> np.ndarray:
    """[H, W] uint8, 0 or 1."""
    return require("pycocotools.mask", "reading masks").decode(rle)


def extent(segmentation: Any, rle: dict, width: int, height: int) -> tuple[float, ...]:
    """x1, y1, x2, y2 in pixels: of polygons by their points (clipped to the image), of RLE by its
    pixels."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation if is_polygon(p)])
        points = points.clip(0, (width, height))
        return (*points.min(0).tolist(), *points.max(0).tolist())
    x, y, w, h = require("pycocotools.mask", "reading masks").toBbox(rle).tolist()
    return x, y, x + w, y + h
