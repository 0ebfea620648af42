"""Data sets of this framework: COCO-format instances, or images with label maps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ..data.coco import READ_ALL, CocoData, ReadOptions
from ..data.formats import read_annotations
from ..data.images import read_image
from ..data.label_maps import (
    check_labels,
    numbered_classes,
    pair_label_maps,
    read_label_map,
    summarize_labels,
)
from ..data.masks import to_rle
from ..utils.errors import UserError
from ..utils.progress import track
from .masks import RunLengthMasks

Record = dict[str, Any]
Target = dict[str, Tensor | RunLengthMasks]


@dataclass
class Dataset:
    """Records of images, and the function that reads their targets.

    A target has ``boxes`` [N, 4] float32 (x1 y1 x2 y2), ``labels`` [N] int64 from 1 and, if the
    data have masks, ``masks`` (:class:`RunLengthMasks`); with label maps it has only ``labels``
    [H, W] int64.
    """

    records: list[Record]  # dicts with "path", "width", "height" and entries for read_target
    classes: tuple[str, ...]  # with label maps, the name of label 0 comes first
    read_target: Callable[[Record], Target]
    summary: str  # one line about the data
    coco: CocoData | None = None  # the annotation file; None for label maps

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category ids in the order of the classes; empty for label maps."""
        return tuple(c["id"] for c in self.coco.categories) if self.coco else ()


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a tensor [3, H, W] float32 in 0..1."""
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)


def read_record_image(record: Record) -> Image.Image:
    """Read the image of a record; raise UserError if it does not have the recorded size."""
    return read_image(record["path"], (record["width"], record["height"]))


def read_example(record: Record, dataset: Dataset) -> tuple[Tensor, Target]:
    """Read the image [3, H, W] in 0..1 and the target of a record."""
    return to_tensor(read_record_image(record)), dataset.read_target(record)


@dataclass
class TrainMapper:
    """Function that reads the example of a record; a random half is flipped left to right."""

    dataset: Dataset

    def __call__(self, record: Record) -> tuple[Tensor, Target]:
        """Return the image and the target."""
        image, target = read_example(record, self.dataset)
        if torch.rand(1) >= 0.5:
            return image, target
        return image.flip(-1), flip_target(target, image.shape[-1])


def flip_target(target: Target, width: int) -> Target:
    """Flip the target of an image of ``width`` pixels left to right."""
    target = dict(target)
    if "masks" in target:
        target["masks"] = target["masks"].flip()
    if "boxes" in target:
        target["boxes"] = flip_boxes(target["boxes"], width)
    else:
        target["labels"] = target["labels"].flip(-1)
    return target


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Flip boxes [N, 4] left to right in an image of ``width`` pixels."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), 1)


def open_dataset(
    images: str | None,
    annotations: str | None = None,
    labels: str | None = None,
    *,
    classes: tuple[str, ...] = (),
    options: ReadOptions = READ_ALL,
    split: str = "train",
    prefix: str = "",
) -> Dataset:
    """Open a folder of images with either an annotation file or a folder of label maps.

    ``images`` may be None where the annotations name the images, or lie beside them. ``classes``
    names the labels of label maps, ``prefix`` precedes the arguments' names in messages, and the
    others say how instances are read, see :func:`e3va.data.formats.read_annotations`.
    """
    if not annotations and not labels:
        raise UserError(
            f"no data: expected {prefix}annotations (a COCO-format file, a data.yaml of YOLO, or a "
            f"folder of Pascal VOC or labelme), or {prefix}images and {prefix}labels (label maps)"
        )
    if annotations and labels:
        raise UserError(f"expected one of {prefix}annotations and {prefix}labels, got both")
    if labels and not images:
        raise UserError(f"{prefix}images is not given: expected the folder of the images")
    if images and not Path(images).expanduser().is_dir():
        raise UserError(f"{prefix}images {images}: no such folder")
    if labels:
        return label_dataset(images, labels, classes, options.skip_missing, split == "train")
    if classes:
        raise UserError("--classes is for label maps: the annotation file has its own class names")
    return coco_dataset(annotations, images, options, split)


def check_classes(
    dataset: Dataset, classes: tuple[str, ...], whose: str = "the model was trained on"
) -> None:
    """Check that the data have the same classes as the model or other data, in the same order.

    ``whose`` says in a message which ``classes`` these are.
    """
    if dataset.classes != tuple(classes):
        source = dataset.coco.source if dataset.coco else "the folder of label maps"
        raise UserError(
            f"{source} has the classes {', '.join(dataset.classes)}, but {whose} "
            f"{', '.join(classes)}: expected the same names in the order of their ids"
        )


def coco_dataset(
    annotations: str, images: str | None, options: ReadOptions = READ_ALL, split: str = "train"
) -> Dataset:
    """Open annotations of instances, see :func:`e3va.data.formats.read_annotations`."""
    return from_coco(read_annotations(annotations, images, options, split))


def from_coco(data: CocoData) -> Dataset:
    """Return the data set of annotations that are read."""
    names = tuple(data.class_names)
    return Dataset(data.images, names, partial(_read_instances, data), data.summary(), data)


def _read_instances(data: CocoData, record: Record) -> Target:
    height, width = record["height"], record["width"]
    found = [a for a in data.annotations[record["id"]] if not a["iscrowd"]]
    boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
    labels = [1 + data.class_index[a["category_id"]] for a in found]
    target = {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}
    if data.masks:
        runs = [_read_mask(data, record, annotation) for annotation in found]
        target["masks"] = RunLengthMasks(runs, (height, width))
    return target


def _read_mask(data: CocoData, record: Record, annotation: dict) -> dict:
    try:
        return to_rle(annotation["segmentation"], record["height"], record["width"])
    except ValueError as error:
        raise UserError(
            f"{data.source}: annotation {annotation.get('id')} of {record['path']}: "
            f"{error}; correct or remove the annotation"
        ) from None


def label_dataset(
    images: str,
    labels: str,
    names: tuple[str, ...] = (),
    skip_missing: bool = False,
    training: bool = True,
) -> Dataset:
    """Open images with label maps, see :mod:`e3va.data.label_maps`; every map is checked.

    The default class names are ``class 0`` … up to the largest label. ``skip_missing`` leaves out
    images without a label map. Only data for ``training`` need more labels than 0 and 255.
    """
    pairs = pair_label_maps(images, labels, skip_missing)
    tracked = partial(track, pairs, "reading label maps", "image")
    names = tuple(names) or tuple(numbered_classes(tracked()))
    check_labels(tracked(), names, training)
    records = [
        {"path": str(p.image), "labels": str(p.labels), "width": p.width, "height": p.height}
        for p in pairs
    ]
    summary = summarize_labels(images, pairs, names, pairs.counts)
    return Dataset(records, names, _read_label_target, summary)


def _read_label_target(record: Record) -> Target:
    return {"labels": read_label_map(record["labels"]).long()}
