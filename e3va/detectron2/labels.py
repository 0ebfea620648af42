"""Label maps for Detectron2's ``SemanticSegmentor``: dataset dicts, mapper, evaluator.

A record may have ``first_label``, the label that class 0 has in its file (0 if it is absent): what
is below is ignored. Detectron2's own mapper does not know it.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import SemSegEvaluator
from omegaconf import ListConfig

from ..data.label_maps import (
    IGNORED,
    MOST_CLASSES,
    check_labels,
    numbered_classes,
    pair_label_maps,
    read_label_map,
)
from ..utils.errors import UserError

logger = logging.getLogger(__name__)


def label_classes(images: str, labels: str, classes: Sequence[str] | None) -> list[str]:
    """The class names that are given, else ``class 0`` … up to the largest label of the maps.

    Raises:
        UserError: the names are not a list of different ones, or there are too many; without names,
            as :func:`e3va.data.label_maps.pair_label_maps` and ``read_label_map``.
    """
    if classes is None:
        return numbered_classes(pair_label_maps(*_given(images, labels, "data.train")))
    if not isinstance(classes, list | tuple | ListConfig) or not classes:
        raise UserError(f"data.classes={classes}: expected a list of names, as [background,date]")
    names = [str(name) for name in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"data.classes has {', '.join(twice)} twice: expected different names")
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"data.classes has {len(names)} names: label maps of 8 bits have {MOST_CLASSES} at most"
        )
    return names


def count_label_classes(images: str, labels: str, classes: Sequence[str] | None) -> int:
    """The number of :func:`label_classes`, for ``model.sem_seg_head.num_classes``."""
    return len(label_classes(images, labels, classes))


def label_dicts(
    images: str, labels: str, *, training: bool, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Dataset dicts in Detectron2's format for two folders; every label map is read and checked.

    Args:
        images, labels: see :func:`e3va.data.label_maps.pair_label_maps`.
        training: which of the config's keys an error names.
        classes: names; that of label 0 first.

    Raises:
        UserError: a path was not given; as :func:`e3va.data.label_maps.pair_label_maps`; a label without
            a class.
    """
    pairs = pair_label_maps(*_given(images, labels, "data.train" if training else "data.val"))
    check_labels(pairs, classes)
    logger.info(
        "%s: %d images with label maps, %d classes (%s)",
        *(images, len(pairs), len(classes), ", ".join(classes)),
    )
    return [
        {
            "file_name": str(pair.image),
            "sem_seg_file_name": str(pair.labels),
            "height": pair.height,
            "width": pair.width,
        }
        for pair in pairs
    ]


def label_evaluator(
    images: str, labels: str, *, classes: Sequence[str], output_dir: str
) -> SemSegEvaluator:
    """Detectron2's mIoU and pixel accuracy on two folders; :func:`label_dicts` says of what.

    Writes ``sem_seg_predictions.json`` and ``sem_seg_evaluation.pth`` into ``output_dir`` when it
    evaluates.
    """
    name = f"e3va:{Path(labels).expanduser().resolve()}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    records = label_dicts(images, labels, training=False, classes=classes)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list(classes), ignore_label=IGNORED)
    return registered_label_evaluator(name, output_dir)


def registered_label_evaluator(dataset_name: str, output_dir: str) -> SemSegEvaluator:
    """Detectron2's mIoU and pixel accuracy on a data set that it knows by name.

    Label maps are read as :class:`LabelMapper` reads them. Detectron2's class leaves out classes
    that no label map has, and adds the IoU of boundaries where OpenCV is installed.
    """
    records = DatasetCatalog.get(dataset_name)
    classes = len(MetadataCatalog.get(dataset_name).stuff_classes)
    first = {r["sem_seg_file_name"]: r.get("first_label", 0) for r in records}

    def read(path: str, dtype: Any) -> np.ndarray:
        return read_label_map(path, first[path], classes).numpy().astype(dtype)

    return SemSegEvaluator(dataset_name, output_dir=str(output_dir), sem_seg_loading_fn=read)


def _given(images: str, labels: str, key: str) -> tuple[str, str]:
    for path, name in ((images, "images"), (labels, "labels")):
        if not path:
            raise UserError(
                f"{key}.{name} is not given: add {key}.{name}=FOLDER to the command line"
            )
    return os.path.expanduser(images), os.path.expanduser(labels)


class LabelMapper:
    """Record → example with ``image`` [3, H, W] uint8 and, for training, ``sem_seg`` [H, W] int64.

    Detectron2's own mapper takes the colours of palette images for labels, and knows no
    ``first_label``.

    Args:
        is_train: whether to read label maps.
        augmentations: of Detectron2; they get ``image`` and ``sem_seg``.
        image_format: ``"RGB"`` or ``"BGR"``.
        classes: how many there are; larger labels are mistakes.

    Raises:
        UserError: an image or a label map cannot be read, they are not of one size, or a label is
            of no class.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        classes: int = MOST_CLASSES,
    ):
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.classes = classes

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        example = dict(record)
        image = self._read_image(record["file_name"])
        example["height"], example["width"] = image.shape[:2]
        labels = self._read_labels(example) if self.is_train else None
        entry = T.AugInput(image, sem_seg=labels)
        self.augmentations(entry)
        example["image"] = _to_tensor(entry.image.transpose(2, 0, 1))
        if labels is not None:
            example["sem_seg"] = _to_tensor(entry.sem_seg).long()
        return example

    def _read_image(self, path: str) -> np.ndarray:
        try:
            return read_image(path, format=self.image_format)
        except (OSError, SyntaxError) as error:  # Pillow raises both for broken files
            missing = isinstance(error, FileNotFoundError)
            reason = "it is not there" if missing else " ".join(str(error).split())[:160]
            raise UserError(
                f"image {path} cannot be read: {reason}; expected an image file that Pillow "
                "decodes; replace it or take it out, with its label map"
            ) from None

    def _read_labels(self, record: dict[str, Any]) -> np.ndarray:
        path, first = record["sem_seg_file_name"], record.get("first_label", 0)
        labels = read_label_map(path, first, self.classes).numpy()
        height, width = record["height"], record["width"]
        if labels.shape != (height, width):
            raise UserError(
                f"label map {path} is {labels.shape[1]}×{labels.shape[0]}, its image "
                f"{record['file_name']} {width}×{height}: expected the same size"
            )
        return labels


def _to_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
