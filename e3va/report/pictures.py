"""Pictures of the truth and of what a model found, of equal size."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.coco import CocoData
from ..data.contact_sheet import Picture, draw_tile
from .findings import LEAST_SCORE

Pair = tuple[Image.Image, Image.Image]


def draw_objects(data: CocoData, image: Mapping[str, Any], results: Sequence[dict]) -> Pair:
    """Draw the true and the found objects of an image.

    Args:
        data: the true objects.
        image: a record of ``data.images``.
        results: detections of all images in COCO's format; masks are drawn where they have some.
    """
    truth = [a for a in data.annotations[image["id"]] if not a["iscrowd"]]
    found = [r for r in results if r["image_id"] == image["id"] and r["score"] >= LEAST_SCORE]
    pictures = []
    for side in (truth, found):
        objects = [
            (data.class_index[o["category_id"]], o["bbox"], o.get("segmentation")) for o in side
        ]
        size = image["width"], image["height"]
        picture = Picture(image["path"], size, "", frozenset(), objects)
        pictures.append(draw_tile(picture, data.class_names))
    return pictures[0], pictures[1]


def draw_label_maps(
    path: str, true: str, found: np.ndarray, classes: Sequence[str], first: int = 0
) -> Pair:
    """Draw the true and the found classes of an image.

    Args:
        path: path of the image.
        true: path of its label map.
        found: the predicted classes [H, W].
        classes: class names.
        first: label of class 0 in the true label map.
    """
    size = found.shape[1], found.shape[0]
    with tempfile.TemporaryDirectory() as folder:
        other = str(Path(folder) / "found.png")
        Image.fromarray(found.astype(np.uint8)).save(other)
        pictures = [
            draw_tile(Picture(path, size, "", frozenset(), labels=file, first=start), classes)
            for file, start in ((true, first), (other, 0))
        ]
    return pictures[0], pictures[1]
