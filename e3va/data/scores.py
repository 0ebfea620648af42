"""What scores are made of: the precision of objects, and the confusion of label maps."""

import contextlib
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from .coco import CocoData
from .label_maps import IGNORED

KINDS = {"box": "bbox", "mask": "segm"}  # COCO's names
SIZES = ("small", "medium", "large")  # COCO's: areas up to 32², 96², and more


def find_precision(
    data: CocoData,
    results: Sequence[dict],
    kinds: Sequence[str],
    limit: int = 100,
    by_size: bool = False,
) -> dict[str, np.ndarray]:
    """Return COCO's precision of results by kind, some of ``KINDS``.

    Args:
        data: the true objects.
        results: detections of all images in COCO's format, without ids.
        kinds: what is compared.
        limit: largest number of detections of a class in an image that count.
        by_size: whether to compute it for objects of each size too.

    Returns:
        Arrays [IoU from 0.5 to 0.95, recall from 0 to 1, class, size], -1 for a class without
        objects. The first size is that of all objects; with ``by_size``, ``SIZES`` follow.
    """
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
        listed = (a for image in data.images for a in data.annotations[image["id"]])
        # pycocotools changes the records that it gets, and takes id 0 for "no object".
        own = [{**annotation, "id": number} for number, annotation in enumerate(listed, 1)]
        truth = _index(data, own)
        loaded = truth.loadRes([dict(r) for r in results]) if results else _index(data, [])
        for kind in kinds:
            run = COCOeval(truth, loaded, KINDS[kind])
            run.params.maxDets = [limit]
            if not by_size:
                run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
            run.evaluate()
            run.accumulate()
            found[kind] = run.eval["precision"][..., 0]
    return found


def _index(data: CocoData, annotations: list[dict]) -> COCO:
    result = COCO()
    result.dataset = {"images": data.images, "categories": data.categories}
    result.dataset["annotations"] = annotations
    result.createIndex()
    return result


def mean_percent(precision: np.ndarray) -> float:
    """Return the mean of precisions in percent; -1 stands for a class without objects."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else math.nan


def confusion_matrix(truth: Tensor, predicted: Tensor, count: int) -> Tensor:
    """Count the pixels of each true (row) and predicted (column) class, without ignored ones."""
    known = truth != IGNORED
    index = truth[known] * count + predicted[known]
    return torch.bincount(index, minlength=count**2).view(count, count)


def class_iou(confusion: Tensor) -> Tensor:
    """Return each class's intersection over union, 0 to 1; NaN for a class that occurs nowhere."""
    right = confusion.diag().double()
    union = confusion.sum(0) + confusion.sum(1) - right
    return torch.where(union > 0, right / union, torch.nan)
