"""The report of a training with this framework, see :mod:`e3va.report`."""

import contextlib
import io
import json
import math
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

from .._version import __version__
from ..report.findings import label_findings, object_findings
from ..report.page import Training, moved, part_rows
from ..report.pictures import Pair, draw_label_maps, draw_objects
from ..utils.errors import UserError
from ..utils.measure import MIB
from ..weights.checkpoint import load_file
from .curves import SCORES, read_metrics
from .data import Dataset, read_record_image, to_tensor
from .evaluate import Predictions, evaluate
from .loading import load_model
from .models import ModelConfig
from .options import DEFAULTS
from .trainer import METRICS, MODEL, SUMMARY
from .training_data import open_data
from .transform import detect

REPORT = "report.html"


def read_training(
    folder: Path, device: torch.device, predictions: Predictions | None = None
) -> Training:
    """Read what a training of ``e3va train`` left, and compare its predictions with the truth.

    Args:
        folder: output folder of a training that has ended.
        device: device on which the model predicts.
        predictions: predictions of its last evaluation; None to predict the validation data again.

    Returns:
        The training; if its data cannot be read, ``without`` says why it has no findings.

    Raises:
        UserError: the folder holds no such training.
    """
    found, data = read_costs(folder), load_file(folder / MODEL)
    config = ModelConfig.from_dict(data["config"], str(folder / MODEL))
    try:
        validation = _open_validation(data.get("data") or {}, config)
        if validation is not None:
            _add_findings(
                found, _Validation(folder, device, validation, config.detections), predictions
            )
    except UserError as error:  # the data have moved; what the folder has is worth a page
        found.without = moved(error)
    return found


def read_costs(folder: Path) -> Training:
    """Read what a training left, without its data: scores, curves and costs.

    Raises:
        UserError: the folder holds no such training.
    """
    data = _read_model(folder)
    config = ModelConfig.from_dict(data["config"], str(folder / MODEL))
    stored = data.get("data") or {}
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    metrics = read_metrics(folder)
    progress = {
        name: [(m["step"], m[name]) for m in metrics if m.get(name) is not None] for name in SCORES
    }
    return Training(
        name=folder.resolve().name,
        facts=_facts(config, data, stored, summary),
        scores=summary["scores"],
        per_class=_numbers(summary.get("per_class") or {}),
        score=next((name for name in SCORES[:2] if name in summary["scores"]), "IoU"),
        losses=[(m["step"], m["loss"]) for m in metrics if "loss" in m],
        progress={name: points for name, points in progress.items() if points},
        parts=part_rows(summary["parameters"]),
        command=_command(stored, folder),
    )


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in scores.items()}


def _read_model(folder: Path) -> dict[str, Any]:
    missing = [name for name in (MODEL, SUMMARY, METRICS) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: expected the output folder of e3va train, after "
            "the training has ended"
        )
    data = load_file(folder / MODEL)
    if not isinstance(data.get("config"), dict):
        raise UserError(f"{folder / MODEL} is not a model of e3va train: it has no description")
    return data


def _open_validation(stored: Mapping[str, Any], config: ModelConfig) -> Dataset | None:
    """Open the validation data of a training again, without its lines on the screen."""
    options = {**DEFAULTS, **(stored.get("options") or {})}
    with contextlib.redirect_stdout(io.StringIO()):
        return open_data(options, config.model, config.classes, stored.get("split")).validation


@dataclass
class _Validation:
    """The validation data of a training, and the model that predicts them if that is needed."""

    folder: Path
    device: torch.device
    dataset: Dataset
    detections: int  # largest number in an image

    @cached_property
    def model(self) -> nn.Module:
        return load_model(self.folder / MODEL, self.device)[0]

    def labels(self, place: int) -> np.ndarray:
        """Predict a label map [H, W]."""
        image = to_tensor(read_record_image(self.dataset.records[place]))
        with torch.no_grad():
            return detect(self.model, image.to(self.device))["labels"].numpy()


def _add_findings(found: Training, own: _Validation, predictions: Predictions | None) -> None:
    dataset = own.dataset
    if predictions is None:
        scores = evaluate(own.model, dataset, own.device)
        predictions, found.scores, found.per_class = (
            scores.predictions,
            scores.values,
            scores.per_class,
        )
    found.images = [Path(record["path"]).name for record in dataset.records]
    if dataset.coco:
        found.findings = object_findings(
            dataset.coco, predictions.objects, predictions.masks, own.detections
        )
    else:
        found.findings = label_findings(dataset.classes, predictions.quality, predictions.confusion)
    found.draw = lambda place: _draw(own, predictions, place)


def _draw(own: _Validation, predictions: Predictions, place: int) -> Pair:
    dataset, record = own.dataset, own.dataset.records[place]
    if dataset.coco:
        return draw_objects(dataset.coco, record, predictions.objects)
    return draw_label_maps(record["path"], record["labels"], own.labels(place), dataset.classes)


def _facts(
    config: ModelConfig, data: Mapping[str, Any], stored: Mapping[str, Any], summary: dict
) -> dict[str, str]:
    highway, options = config.highway, stored.get("options") or {}
    backbone = [summary["parameters"][part] for part in ("trunk", "highway")]
    share = sum(row["trained"] for row in backbone) / sum(row["all"] for row in backbone)
    kept, seconds = summary["kept_for_backward_bytes"], summary["seconds_a_step"]
    together = {}
    if stored.get("together"):
        text = (
            "with another model over the same trunk, which ran once for both: peak memory is that "
            "of both, and the trunk's seconds are in those of the first model"
        )
        together = {"trained together": "; ".join(filter(None, (text, stored.get("note"))))}
    return {
        "model": config.model,
        "classes": ", ".join(config.classes),
        "training data": str(stored.get("summary", "unknown")),
        **together,
        "trunk": config.trunk,
        "recipe": f"{highway.recipe}, adapters: {highway.adapter or 'none'}",
        "of the backbone trains": f"{share:.2%}",
        "steps": str(data.get("step")),
        "images in a step": str(options.get("batch_size")),
        "size of the images": f"{config.size} to {config.max_size} pixels",
        "memory mode": config.memory,
        "seed": str(options.get("seed")),
        "kept for the backward pass": f"{kept / MIB:.1f} MiB" if kept else "unknown",
        "seconds a step": f"{seconds:.2f}" if seconds else "unknown",
        "peak memory": f"{summary['peak_memory_mib']:,.0f} MiB",
        "versions of this report": f"e3va {__version__}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, Python {platform.python_version()}",
    }


def _command(stored: Mapping[str, Any], folder: Path) -> str:
    """Return the command line of a training, as far as its options differ from the defaults."""
    options, words = stored.get("options") or {}, ["e3va", "train"]
    if stored.get("together"):  # with the training of another model
        options, folder = stored["together"], folder.parent
    for name, value in options.items():
        if value == DEFAULTS.get(name) or name == "highway":
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(str(value))
    highway = dict(options.get("highway") or {})
    if highway:
        words += _highway_words(highway)
    return shlex.join([*words, "--output", str(folder)])


def _highway_words(highway: dict[str, Any]) -> list[str]:
    words = []
    for flag, key in (("--recipe", "recipe"), ("--adapter-kind", "adapter")):
        value = highway.pop(key, None)
        if value:
            words += [flag, str(value)]
    if highway:
        words += ["--highway", *(f"{name}={value}" for name, value in highway.items())]
    return words
