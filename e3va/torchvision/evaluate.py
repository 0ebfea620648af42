"""Box and mask AP by pycocotools; intersection over union of label maps."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.scores import class_iou, confusion_matrix, find_precision, mean_percent
from ..report.findings import image_quality
from ..utils.progress import track
from .data import Dataset, read_record_image, to_tensor
from .masks import encode_masks
from .transform import detect


@dataclass
class Predictions:
    """What a model finds in a data set, as far as scores need it."""

    objects: list[dict] = field(default_factory=list)  # detections in COCO's format
    masks: bool = False  # whether masks count besides boxes
    confusion: Tensor | None = None  # of the pixels of all label maps
    quality: list[float] = field(default_factory=list)  # mean IoU of each label map, 0 to 1


@dataclass
class Scores:
    """Scores of an evaluation, in percent; NaN if the data have no object.

    They are ``AP box``, ``AP50 box``, ``AP75 box`` and, if there are masks, the same of masks; or
    ``mIoU`` and ``pixel accuracy``.
    """

    values: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)  # AP or IoU by class name
    predictions: Predictions | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Return ``scores`` and ``per_class`` for a JSON file, which has null instead of NaN."""
        parts = {"scores": self.values, "per_class": self.per_class}
        return {
            part: {name: None if math.isnan(value) else value for name, value in entries.items()}
            for part, entries in parts.items()
        }

    def table(self) -> str:
        """Return a line of text for each score and each class; – stands for NaN."""
        score = next((name for name in ("AP mask", "AP box") if name in self.values), "IoU")
        rows = [*self.values.items(), (f"{score} of each class:", None)]
        rows += [(f"  {name}", value) for name, value in self.per_class.items()]
        width = 2 + max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}{_cell(value):>7}".rstrip() for name, value in rows)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return "–" if math.isnan(value) else f"{value:.1f}"


def evaluate(model: nn.Module, dataset: Dataset, device: torch.device) -> Scores:
    """Evaluate a model on a data set; the model's mode is restored afterwards.

    Mask AP needs masks in the data and in the model's output; otherwise boxes count only.
    """
    predictions = predict_dataset(model, dataset, device)
    if dataset.coco:
        limit = largest_number(model)
        scores = coco_scores(predictions.objects, dataset, predictions.masks, limit)
    else:
        scores = label_scores(predictions.confusion, dataset.classes)
    scores.predictions = predictions
    return scores


@torch.no_grad()
def predict_dataset(model: nn.Module, dataset: Dataset, device: torch.device) -> Predictions:
    """Predict all images of a data set; the model's mode is restored afterwards."""
    was_training, count = model.training, len(dataset.classes)
    found = Predictions(confusion=torch.zeros(count, count, dtype=torch.int64))
    found.masks = dataset.coco is not None and dataset.coco.masks
    model.eval()
    try:
        for record in track(dataset.records, "evaluating", "image"):
            own = detect(model, to_tensor(read_record_image(record)).to(device))
            if dataset.coco:
                found.masks = found.masks and "masks" in own
                found.objects += to_coco(own, record["id"], dataset.category_ids)
            else:
                truth = dataset.read_target(record)["labels"]
                confusion = confusion_matrix(truth, own["labels"], count)
                found.confusion += confusion
                found.quality.append(image_quality(confusion))
    finally:
        model.train(was_training)
    return found


def largest_number(model: nn.Module) -> int:
    """Return the largest number of objects that a model finds in an image; 100 by default."""
    return getattr(getattr(model, "roi_heads", model), "detections_per_img", 100)


def to_coco(found: dict[str, Tensor], image_id: int, category_ids: tuple[int, ...]) -> list[dict]:
    """Convert a detector's output for one image to COCO results; masks become compressed RLE."""
    boxes, labels, scores = (found[key].tolist() for key in ("boxes", "labels", "scores"))
    records = [
        {
            "image_id": image_id,
            "category_id": category_ids[label - 1],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in zip(boxes, labels, scores, strict=True)
    ]
    if "masks" in found:
        for record, rle in zip(records, encode_masks(found["masks"]).records, strict=True):
            record["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return records


def coco_scores(
    results: list[dict], dataset: Dataset, masks: bool = True, limit: int = 100
) -> Scores:
    """Return the AP of results in COCO's format.

    Args:
        results: detections of all images, without ids.
        dataset: data set with the true objects.
        masks: whether to score masks besides boxes.
        limit: largest number of detections of a class in an image that count.
    """
    scores, classes = Scores(), range(len(dataset.classes))
    kinds = ("box", "mask")[: 1 + masks]
    for kind, found in find_precision(dataset.coco, results, kinds, limit).items():
        precision = found[..., 0]
        chosen = {"AP": precision, "AP50": precision[0], "AP75": precision[5]}
        scores.values |= {f"{name} {kind}": mean_percent(own) for name, own in chosen.items()}
        values = (mean_percent(precision[..., index]) for index in classes)
        scores.per_class = _by_name(dataset.classes, values)
    return scores


def _by_name(classes: tuple[str, ...], values: Iterable[float]) -> dict[str, float]:
    """Return a value for each class; a second class of the same name gets its number."""
    result: dict[str, float] = {}
    for number, (name, value) in enumerate(zip(classes, values, strict=True), 1):
        result[f"{name} ({number})" if name in result else name] = value
    return result


def label_scores(confusion: Tensor, classes: tuple[str, ...]) -> Scores:
    """Return mIoU, over the classes in truth or prediction, and the share of correct pixels."""
    iou = 100 * class_iou(confusion)
    values = {
        "mIoU": float(iou.nanmean()),
        "pixel accuracy": float(100 * confusion.trace() / confusion.sum().clamp(min=1)),
    }
    return Scores(values, _by_name(classes, iou.tolist()))
