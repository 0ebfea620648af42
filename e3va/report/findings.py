"""What a model finds in a data set beside the truth: confusion, and the quality of each image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask
from torch import Tensor

from ..data.coco import CocoData
from ..data.masks import to_rle
from ..data.scores import SIZES, class_iou, find_precision, mean_percent

LEAST_SCORE, LEAST_IOU = 0.5, 0.5  # of objects that count in confusion and F1
NOTHING = "nothing"  # the row and column of the confusion for objects without a partner


@dataclass
class Findings:
    """The findings of a model in a data set.

    Attributes:
        measure: what sorts the images, in words.
        quality: quality of each image in this measure, 0 to 1.
        names: the names of rows and columns of ``confusion``.
        confusion: counts by true (row) and predicted (column) class, of objects or pixels.
        by_size: AP in percent by size of the objects; NaN without such objects. Empty for label
            maps.
        precision: by class name, the precision at the recalls 0, 0.01, …, 1. Empty for label maps.
    """

    measure: str
    quality: list[float]
    names: list[str]
    confusion: np.ndarray
    by_size: dict[str, float] = field(default_factory=dict)
    precision: dict[str, np.ndarray] = field(default_factory=dict)

    def order(self) -> list[int]:
        """Return the places of all images, the worst first."""
        return sorted(range(len(self.quality)), key=self.quality.__getitem__)


def object_findings(
    data: CocoData, results: Sequence[dict], masks: bool, limit: int = 100
) -> Findings:
    """Compare detections with the true objects.

    Args:
        data: the true objects.
        results: detections of all images in COCO's format.
        masks: whether masks are compared, or else boxes.
        limit: largest number of detections of a class in an image that count for AP.
    """
    count = len(data.categories)
    confusion = np.zeros((count + 1, count + 1), np.int64)
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in data.images}
    for result in results:
        if result["score"] >= LEAST_SCORE:
            by_image[result["image_id"]].append(result)
    quality = []
    for image in data.images:
        pairs = match(image, data, by_image[image["id"]], masks)
        for true, found in pairs:
            confusion[true, found] += 1
        quality.append(_f1(pairs, count))
    kind = "mask" if masks else "box"
    precision = find_precision(data, results, [kind], limit, by_size=True)[kind]
    curves = {
        name: precision[0, :, index, 0]
        for index, name in enumerate(data.class_names)
        if (precision[0, :, index, 0] > -1).any()
    }
    by_size = {name: mean_percent(precision[..., place]) for place, name in enumerate(SIZES, 1)}
    return Findings(
        f"F1 of the objects with a score of at least {LEAST_SCORE:g}, matched with an IoU of at "
        f"least {LEAST_IOU:g} and the right class",
        quality,
        [*data.class_names, NOTHING],
        confusion,
        by_size,
        curves,
    )


def match(image: dict, data: CocoData, found: Sequence[dict], masks: bool) -> list[tuple[int, int]]:
    """Match true and found objects of an image one to one.

    Pairs of the same class come first, then those with the higher IoU. Found objects that lie in
    crowd regions are left out.

    Returns:
        Pairs of class indices (true, found); the number of classes stands for no partner.
    """
    count, index = len(data.categories), data.class_index
    own = data.annotations[image["id"]]
    overlap = _overlaps(image, found, own, masks)  # [found, own]
    crowd = np.array([bool(a["iscrowd"]) for a in own], bool)
    candidates = [
        (found[f]["category_id"] == own[t]["category_id"], overlap[f, t], f, t)
        for f, t in np.argwhere(overlap >= LEAST_IOU).tolist()
        if not crowd[t]
    ]
    pairs, used_found, used_true = [], set(), set()
    for _, _, f, t in sorted(candidates, key=lambda c: (-c[0], -c[1])):
        if f not in used_found and t not in used_true:
            used_found.add(f)
            used_true.add(t)
            pairs.append((index[own[t]["category_id"]], index[found[f]["category_id"]]))
    for t, annotation in enumerate(own):
        if t not in used_true and not crowd[t]:
            pairs.append((index[annotation["category_id"]], count))
    for f, result in enumerate(found):
        in_crowd = crowd.any() and (overlap[f][crowd] >= LEAST_IOU).any()
        if f not in used_found and not in_crowd:
            pairs.append((count, index[result["category_id"]]))
    return pairs


def _overlaps(image: dict, found: Sequence[dict], own: Sequence[dict], masks: bool) -> np.ndarray:
    if not found or not own:
        return np.zeros((len(found), len(own)))
    crowd = [int(a["iscrowd"]) for a in own]
    if masks:
        size = image["height"], image["width"]
        sides = [[to_rle(a["segmentation"], *size) for a in side] for side in (found, own)]
    else:
        sides = [np.array([a["bbox"] for a in side], np.float64) for side in (found, own)]
    return np.asarray(pycocotools.mask.iou(*sides, crowd))


def _f1(pairs: Sequence[tuple[int, int]], nothing: int) -> float:
    """Return 2 · right / (true + found); 1 for an image without objects in which none is found."""
    right = sum(true == found for true, found in pairs)
    objects = sum((true != nothing) + (found != nothing) for true, found in pairs)
    return 2 * right / objects if objects else 1.0


def image_quality(confusion: Tensor) -> float:
    """Return the mean IoU of the classes in one label map, 0 to 1; 1 if all pixels are ignored."""
    mean = float(class_iou(confusion).nanmean())
    return 1.0 if math.isnan(mean) else mean


def label_findings(classes: Sequence[str], quality: Sequence[float], confusion: Tensor) -> Findings:
    """Return the findings of label maps.

    Args:
        classes: class names.
        quality: :func:`image_quality` of each image.
        confusion: the confusion of all images, counts of pixels [classes, classes].
    """
    measure = "mean IoU of the classes in the image"
    return Findings(measure, list(quality), list(classes), confusion.numpy())
