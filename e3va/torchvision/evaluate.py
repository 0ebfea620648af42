"""Box and mask AP by pycocotools; intersection over union of label maps."""

import contextlib
import io
import math
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from ..data.label_maps import IGNORED
from ..utils.progress import track
from .data import Dataset, read_example


@dataclass
class Scores:
    """Scores of an evaluation, in percent; NaN if the data have no object.

    They are ``AP box``, ``AP50 box``, ``AP75 box`` and the same of masks; or ``mIoU`` and ``pixel
    accuracy``.
    """

    values: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)  # mask AP or IoU by class name

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Return ``scores`` and ``per_class`` for a JSON file, which has null instead of NaN."""
        parts = {"scores": self.values, "per_class": self.per_class}
        return {
            part: {name: None if math.isnan(value) else value for name, value in entries.items()}
            for part, entries in parts.items()
        }

    def table(self) -> str:
        """Return a line of text for each score and each class."""
        width = max(map(len, [*self.values, *self.per_class]))
        rows = [*self.values.items(), *((f"  {k}", v) for k, v in self.per_class.items())]
        return "\n".join(f"{name:<{width + 2}}{value:>7.1f}" for name, value in rows)


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, device: torch.device) -> Scores:
    """Evaluate a model on a data set; the model's mode is restored afterwards."""
    was_training, results, count = model.training, [], len(dataset.classes)
    confusion = torch.zeros(count, count, dtype=torch.int64)
    model.eval()
    try:
        for record in track(dataset.records, "evaluating", "image"):
            image, target = read_example(record, dataset)
            output = model([image.to(device)])[0]
            if dataset.coco:
                results += to_coco(output, record["id"], dataset.category_ids)
            else:
                confusion += confusion_matrix(target["labels"], output["labels"].cpu(), count)
    finally:
        model.train(was_training)
    if dataset.coco:
        return coco_scores(results, dataset)
    return label_scores(confusion, dataset.classes)


def to_coco(found: dict[str, Tensor], image_id: int, category_ids: tuple[int, ...]) -> list[dict]:
    """Convert a detector's output for one image to COCO results; masks become compressed RLE."""
    boxes, records = found["boxes"].cpu().tolist(), []
    masks = (found["masks"][:, 0] >= 0.5).to(torch.uint8).cpu().numpy()
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        rle = pycocotools.mask.encode(np.asfortranarray(masks[number]))
        records.append(
            {
                "image_id": image_id,
                "category_id": category_ids[int(found["labels"][number]) - 1],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(found["scores"][number]),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return records


def coco_scores(results: list[dict], dataset: Dataset) -> Scores:
    """Return box and mask AP of results in COCO's format."""
    values: dict[str, float] = {}
    per_class: dict[str, float] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own tables
        truth = COCO()
        data = dataset.coco
        annotations = [dict(a) for image in data.images for a in data.annotations[image["id"]]]
        truth.dataset = {"images": data.images, "categories": data.categories}
        truth.dataset["annotations"] = annotations
        truth.createIndex()
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            keys = (f"AP {name}", f"AP50 {name}", f"AP75 {name}")
            if not results:
                values.update(dict.fromkeys(keys, 0.0))
                continue
            run = COCOeval(truth, truth.loadRes([dict(r) for r in results]), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            values.update(zip(keys, map(_percent, run.stats[:3]), strict=True))
            if kind == "segm":
                precision = run.eval["precision"][..., 0, -1]  # [IoU, recall, class]
                for index, class_name in enumerate(dataset.classes):
                    own = precision[:, :, index]
                    per_class[class_name] = _percent(own[own > -1].mean() if own.max() >= 0 else -1)
    return Scores(values, per_class)


def _percent(value: float) -> float:
    return 100 * float(value) if value >= 0 else math.nan


def confusion_matrix(truth: Tensor, predicted: Tensor, count: int) -> Tensor:
    """Count the pixels of each true (row) and predicted (column) class, without ignored ones."""
    known = truth != IGNORED
    index = truth[known] * count + predicted[known]
    return torch.bincount(index, minlength=count**2).view(count, count)


def label_scores(confusion: Tensor, classes: tuple[str, ...]) -> Scores:
    """Return mIoU, over the classes in truth or prediction, and the share of correct pixels."""
    right = confusion.diag().double()
    union = confusion.sum(0) + confusion.sum(1) - right
    iou = torch.where(union > 0, 100 * right / union, torch.nan)
    values = {
        "mIoU": float(iou.nanmean()),
        "pixel accuracy": float(100 * right.sum() / confusion.sum().clamp(min=1)),
    }
    return Scores(values, dict(zip(classes, iou.tolist(), strict=True)))
