"""Label maps for Detectron2's ``SemanticSegmentor``: dataset dicts, mapper and evaluator.

A dataset dict may have ``first_label``, the label of class 0 in its file (0 if it is absent); lower
labels are ignored. Detectron2's own mapper does not read this entry.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from ..data.label_maps import (
    IGNORED,
    MOST_CLASSES,
    LabelledImage,
    LabelledImages,
    check_labels,
    check_names,
    numbered_classes,
    pair_label_maps,
    read_label_map,
    summarize_labels,
)
from ..data.split import names_below, split_images
from ..utils.errors import UserError
from .data import DEFAULT_OPTIONS, DataOptions, given_path
from .images import read_array

logger = logging.getLogger(__name__)


def label_classes(
    images: str, labels: str, classes: Sequence[str] | None, skip_missing: bool = False
) -> list[str]:
    """Return the given class names, or ``class 0`` … up to the largest label of the maps."""
    if classes is None:
        return numbered_classes(_find_pairs(images, labels, "data.train", skip_missing))
    names = [str(name) for name in classes]
    check_names(names, "data.classes")
    return names


def count_label_classes(
    images: str, labels: str, classes: Sequence[str] | None, skip_missing: bool = False
) -> int:
    """Return the number of :func:`label_classes`, for ``model.sem_seg_head.num_classes``."""
    return len(label_classes(images, labels, classes, skip_missing))


def label_dicts(
    images: str,
    labels: str,
    *,
    training: bool,
    classes: Sequence[str],
    options: DataOptions | None = None,
) -> list[dict[str, Any]]:
    """Check all label maps of a folder and return dataset dicts in Detectron2's format.

    Args:
        images: folder of the images.
        labels: folder of the label maps, see :func:`e3va.data.label_maps.pair_label_maps`.
        training: whether the data are for training.
        classes: class names; the first one is the name of label 0.
        options: ``skip_missing``, ``val_split`` and ``seed``; with a split, the result is one part.

    Raises:
        UserError: a path is not given, a folder or a file cannot be read, sizes differ, or a label
            has no class.
    """
    options = options or DEFAULT_OPTIONS
    key = "data.train" if training else "data.val"
    whole = pairs = _find_pairs(images, labels, key, options.skip_missing)
    if options.val_split:
        paths = [str(pair.image) for pair in whole]
        names = names_below(Path(images).expanduser(), paths)
        train, val = split_images(names, paths, options.val_split, options.seed)
        pairs = [whole[position] for position in (train if training else val)]
    check_labels(whole, classes, training)
    logger.info(summarize_labels(images, pairs, classes, whole.counts))
    return dicts_of_pairs(pairs)


def dicts_of_pairs(pairs: Iterable[LabelledImage], **entries: Any) -> list[dict[str, Any]]:
    """Return the dataset dicts of images with label maps, each with further ``entries``."""
    return [
        {
            "file_name": str(pair.image),
            "sem_seg_file_name": str(pair.labels),
            "height": pair.height,
            "width": pair.width,
            **entries,
        }
        for pair in pairs
    ]


def label_evaluator(
    images: str,
    labels: str,
    *,
    classes: Sequence[str],
    output_dir: str,
    options: DataOptions | None = None,
) -> SemSegEvaluator:
    """Build Detectron2's evaluator of mIoU and pixel accuracy on two folders."""
    name = f"e3va:{Path(labels).expanduser().resolve()}"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name, None)
    records = label_dicts(images, labels, training=False, classes=classes, options=options)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=list(classes), ignore_label=IGNORED)
    return registered_label_evaluator(name, output_dir)


def registered_label_evaluator(dataset_name: str, output_dir: str) -> SemSegEvaluator:
    """Build Detectron2's evaluator of mIoU and pixel accuracy on a data set in its catalog.

    Label maps are read as in :class:`LabelMapper`. Detectron2's class leaves out classes that occur
    in no label map, and adds the IoU of boundaries where OpenCV is installed.
    """
    records = DatasetCatalog.get(dataset_name)
    classes = len(MetadataCatalog.get(dataset_name).stuff_classes)
    first = {r["sem_seg_file_name"]: r.get("first_label", 0) for r in records}

    def read(path: str, dtype: Any) -> np.ndarray:
        return read_label_map(path, first[path], classes).numpy().astype(dtype)

    return SemSegEvaluator(dataset_name, output_dir=str(output_dir), sem_seg_loading_fn=read)


def _find_pairs(images: str, labels: str, key: str, skip_missing: bool) -> LabelledImages:
    folders = [
        given_path(folder, f"{key}.{name}", "FOLDER")
        for folder, name in ((images, "images"), (labels, "labels"))
    ]
    return pair_label_maps(*folders, skip_missing=skip_missing)


class LabelMapper:
    """Mapper to examples with ``image`` [3, H, W] uint8 and ``sem_seg`` [H, W] int64.

    Detectron2's own mapper reads the colors of palette images as labels, and no ``first_label``.

    It reads label maps only with ``is_train``. ``image_format`` is ``"RGB"`` or ``"BGR"``, and
    ``classes`` the number of classes; larger labels are mistakes.

    Raises:
        UserError: an image or a label map cannot be read, their sizes differ, or a label has no
            class.
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
        """Map a dataset dict to an example."""
        example = dict(record)
        image = read_array(record, self.image_format)
        example["height"], example["width"] = image.shape[:2]
        labels = self._read_labels(example) if self.is_train else None
        entry = T.AugInput(image, sem_seg=labels)
        self.augmentations(entry)
        example["image"] = torch.from_numpy(entry.image.transpose(2, 0, 1).copy())
        if labels is not None:
            example["sem_seg"] = torch.from_numpy(entry.sem_seg.copy()).long()
        return example

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
