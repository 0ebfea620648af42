"""The report of a training along Detectron2, see :mod:`e3va.report`."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from omegaconf import DictConfig
from torch import Tensor

from .._version import __version__
from ..backbone import find_backbone
from ..data.label_maps import read_label_map
from ..data.scores import confusion_matrix
from ..report.findings import Findings, image_quality, label_findings, object_findings
from ..report.page import Training, moved, part_rows
from ..report.pictures import Pair, draw_label_maps, draw_objects
from ..utils.errors import UserError
from ..utils.measure import count_parameters
from ..utils.progress import track
from .backbone import model_parts
from .config import bottom_up_node
from .data import DataOptions, read_data
from .images import read_array
from .labels import label_dicts
from .own_data import has_validation_data
from .predictor import LazyPredictor

CONFIG, WEIGHTS, METRICS = FILES = "config.yaml", "model_final.pth", "metrics.json"
SCORES = {"segm/AP": "AP mask", "bbox/AP": "AP box", "sem_seg/mIoU": "mIoU"}
_OF_CLASS = {"AP mask": "segm/AP-", "AP box": "bbox/AP-", "IoU": "sem_seg/IoU-"}


def read_training(folder: Path, device: str | None = None) -> Training:
    """Read what a training left, and predict its validation data, if they are the user's own.

    Args:
        folder: ``train.output_dir`` of a training that has ended.
        device: device on which the model predicts; the config's by default.

    Raises:
        UserError: the folder holds no such training.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: expected the output folder of a training that "
            "has ended"
        )
    predictor = LazyPredictor(folder / CONFIG, folder / WEIGHTS, device=device)
    cfg = predictor.cfg
    points: dict[str, list[tuple[float, float]]] = {}
    for line in _read_lines(folder / METRICS):
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "iteration":
                points.setdefault(name, []).append((line["iteration"] + 1, value))
    last = {name: own[-1][1] for name, own in points.items()}
    score = next((name for name, start in _OF_CLASS.items() if _starting(last, start)), "AP")
    rows = count_parameters(predictor.model, model_parts(predictor.model))
    found = Training(
        name=folder.resolve().name,
        facts=_facts(cfg, predictor, last),
        scores={name: last[key] for key, name in SCORES.items() if key in last},
        per_class=_starting(last, _OF_CLASS[score]) if score in _OF_CLASS else {},
        score=score,
        losses=points.get("total_loss", []),
        progress={name: points[key] for key, name in SCORES.items() if key in points},
        parts=part_rows({r.part: {"all": r.total, "trained": r.trained} for r in rows}),
        command=f"python lazyconfig_train_net.py --config-file {folder / CONFIG}",
    )
    if "data" in cfg and has_validation_data(cfg.data):
        try:
            _add_findings(found, predictor, cfg)
        except UserError as error:  # the data have moved; what the folder has is worth a page
            found.without = moved(error)
    return found


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        with suppress(ValueError):  # a killed run may have left half a line
            yield json.loads(line)


def _starting(values: Mapping[str, float], start: str) -> dict[str, float]:
    return {name.removeprefix(start): v for name, v in values.items() if name.startswith(start)}


def _facts(cfg: DictConfig, predictor: LazyPredictor, last: Mapping[str, float]) -> dict[str, str]:
    backbone = find_backbone(predictor.model)[1]
    highway, origin = backbone.config.highway, backbone.trunk.origin
    rows = count_parameters(backbone, {"trunk": backbone.trunk, "highway": backbone.highway})
    share = sum(row.trained for row in rows) / sum(row.total for row in rows)
    names = predictor.metadata.get("thing_classes") or predictor.metadata.get("stuff_classes") or ()
    return {
        "model": cfg.train.get("config_name") or type(predictor.model).__name__,
        "classes": ", ".join(names),
        "trunk": f"{origin.source if origin else 'unknown'} ({bottom_up_node(cfg).preset})",
        "recipe": f"{highway.recipe}, adapters: {highway.adapter or 'none'}",
        "of the backbone trains": f"{share:.2%}",
        "steps": str(cfg.train.max_iter),
        "images in a step": str(cfg.dataloader.train.get("total_batch_size")),
        "memory mode": backbone.memory,
        "seed": str(cfg.train.get("seed")),
        "seconds a step": f"{last['time']:.2f}" if "time" in last else "unknown",
        "peak memory": f"{last['max_mem']:,.0f} MiB" if "max_mem" in last else "unknown",
        "versions of this report": f"e3va {__version__}, torch {torch.__version__}, detectron2 "
        f"{detectron2.__version__}",
    }


def _add_findings(found: Training, predictor: LazyPredictor, cfg: DictConfig) -> None:
    options = DataOptions(
        skip_missing=cfg.data.get("skip_missing", False),
        use_crowds=cfg.data.get("use_crowds", False),
        max_detections=cfg.data.get("max_detections", 100),
        val_split=cfg.data.get("val_split", 0.0),
        seed=cfg.train.get("seed", 0),
        classes=cfg.data.classes,
    )
    places = cfg.data.val
    if "labels" in places:
        findings, images, draw = _labels(predictor, places, options)
    else:
        findings, images, draw = _objects(predictor, places, options)
    found.findings, found.images, found.draw = findings, images, draw


def _objects(
    predictor: LazyPredictor, places: DictConfig, options: DataOptions
) -> tuple[Findings, list[str], Callable[[int], Pair]]:
    masks = predictor.model.roi_heads.mask_on if hasattr(predictor.model, "roi_heads") else False
    data = read_data(places.json, places.images, training=False, masks=masks, options=options)
    results = []
    for image in track(data.images, "predicting", "image"):
        own = predictor(_bgr(image["path"]))["instances"].to("cpu")
        for result in instances_to_coco_json(own, image["id"]):
            category = data.categories[result["category_id"]]["id"]
            results.append({**result, "category_id": category})
    findings = object_findings(data, results, masks, options.max_detections)
    names = [Path(image["path"]).name for image in data.images]
    return findings, names, lambda place: draw_objects(data, data.images[place], results)


def _labels(
    predictor: LazyPredictor, places: DictConfig, options: DataOptions
) -> tuple[Findings, list[str], Callable[[int], Pair]]:
    classes = options.classes
    records = label_dicts(
        places.images, places.labels, training=False, classes=classes, options=options
    )

    def predict(record: Mapping[str, Any]) -> Tensor:
        return predictor(_bgr(record["file_name"]))["sem_seg"].argmax(0).cpu()

    quality, total = [], torch.zeros(len(classes), len(classes), dtype=torch.int64)
    for record in track(records, "predicting", "image"):
        first = record.get("first_label", 0)
        truth = read_label_map(record["sem_seg_file_name"], first, len(classes)).long()
        confusion = confusion_matrix(truth, predict(record), len(classes))
        quality.append(image_quality(confusion))
        total += confusion

    def draw(place: int) -> Pair:
        record = records[place]
        files = record["file_name"], record["sem_seg_file_name"]
        return draw_label_maps(
            *files, predict(record).numpy(), classes, record.get("first_label", 0)
        )

    names = [Path(record["file_name"]).name for record in records]
    return label_findings(classes, quality, total), names, draw


def _bgr(path: str) -> np.ndarray:
    """Read an image as the predictor expects it: [H, W, 3] uint8, BGR."""
    return read_array({"file_name": path}, "BGR")
