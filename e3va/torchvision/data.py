"""A user's data for this framework: COCO-format instances, or images with label maps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..data.coco import CocoData, read_coco
from ..data.label_maps import (
    LabelledImage,
    check_labels,
    numbered_classes,
    pair_label_maps,
    read_label_map,
)
from ..utils.errors import UserError
from ..utils.optional import require
from ..utils.progress import track

Record = dict[str, Any]
Target = dict[str, Tensor]


@dataclass
class Dataset:
    """Records of images, and how one of them becomes an example.

    Attributes:
        records: with ``path``, ``width``, ``height`` and what :attr:`read_target` needs.
        classes: names; of label maps that of label 0 first.
        read_target: a record → ``boxes`` [N, 4] float32 (x1 y1 x2 y2), ``labels`` [N] int64 from 1
            and ``masks`` [N, H, W] uint8; or ``labels`` [H, W] int64 for label maps.
        coco: the annotation file, None for label maps.
        summary: one line for people.
    """

    records: list[Record]
    classes: tuple[str, ...]
    read_target: Callable[[Record], Target]
    summary: str
    coco: CocoData | None = None

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Of the annotation file, in the order of the classes; empty for label maps."""
        return tuple(c["id"] for c in self.coco.categories) if self.coco else ()


def read_image(path: str | Path) -> Image.Image:
    """Decode an image as RGB, turned as its EXIF data say.

    Raises:
        UserError: it is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    # Pillow raises all of these for broken files, the last for ones of absurd size.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"image {path} cannot be read: {' '.join(reason.split())[:160]}; expected an image "
            "file that Pillow decodes; replace it or take it out of the data"
        ) from None


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image → [3, H, W] float32 in 0..1."""
    return v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)


def read_example(record: Record, dataset: Dataset) -> tuple[Tensor, Target]:
    """Image [3, H, W] in 0..1 and its target.

    Raises:
        UserError: the image or its label map cannot be read, or is not of the stated size.
    """
    image = read_image(record["path"])
    if image.size != (record["width"], record["height"]):
        raise UserError(
            f"image {record['path']} is {image.size[0]}×{image.size[1]}, but the annotations say "
            f"{record['width']}×{record['height']}: correct the file's width and height"
        )
    return to_tensor(image), dataset.read_target(record)


class TrainMapper:
    """Record → example, flipped left to right half of the time (torch's generator decides).

    Resizing belongs to the model, as in torchvision's detectors.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.flip = v2.RandomHorizontalFlip(0.5)

    def __call__(self, record: Record) -> tuple[Tensor, Target]:
        image, target = read_example(record, self.dataset)
        size = image.shape[-2:]
        wrapped = {"image": tv_tensors.Image(image), **target}
        if "boxes" in target:
            wrapped["boxes"] = tv_tensors.BoundingBoxes(
                target["boxes"], format="XYXY", canvas_size=size
            )
            wrapped["masks"] = tv_tensors.Mask(target["masks"])
        else:
            wrapped["labels"] = tv_tensors.Mask(target["labels"])
        flipped = {k: v.as_subclass(Tensor) for k, v in self.flip(wrapped).items()}
        return flipped.pop("image"), flipped


def coco_dataset(annotations: str, images: str, training: bool) -> Dataset:
    """COCO-format instances.

    Raises:
        UserError: as :func:`e3va.data.coco.read_coco`.
    """
    data = read_coco(Path(annotations).expanduser(), Path(images).expanduser(), training=training)
    require("pycocotools", "reading masks")
    return Dataset(
        data.images, tuple(data.class_names), _InstanceTargets(data), data.summary(), data
    )


@dataclass
class _InstanceTargets:
    """Record → target; a class, since reader processes may be sent it."""

    data: CocoData

    def __call__(self, record: Record) -> Target:
        height, width = record["height"], record["width"]
        found = [a for a in self.data.annotations[record["id"]] if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
        labels = [1 + self.data.class_index[a["category_id"]] for a in found]
        masks = np.zeros((len(found), height, width), np.uint8)
        for mask, annotation in zip(masks, found, strict=True):
            mask[:] = decode_mask(annotation["segmentation"], (height, width))
        return {
            "boxes": boxes,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(masks),
        }


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Polygons or RLE, compressed or not, → [H, W] uint8.

    Raises:
        UserError: an RLE of another size than (H, W).
    """
    mask_util = require("pycocotools.mask", "reading masks")
    if isinstance(segmentation, list):
        rles = mask_util.frPyObjects(segmentation, *size)
        return mask_util.decode(mask_util.merge(rles))
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
    mask = mask_util.decode(segmentation)
    if mask.shape != tuple(size):
        raise UserError(
            f"a mask of {mask.shape[1]}×{mask.shape[0]} in an image of {size[1]}×{size[0]}: "
            "expected the image's own size; correct the annotation's 'size'"
        )
    return mask


def label_dataset(images: str, labels: str, names: tuple[str, ...] = ()) -> Dataset:
    """Images with label maps, see :mod:`e3va.data.label_maps`; every map is read and checked.

    Args:
        images: folder of images.
        labels: folder of label maps, one channel of 8 bits (or a palette).
        names: class names, label 0 first; by default ``class 0`` … up to the largest label.

    Raises:
        UserError: as :func:`e3va.data.label_maps.pair_label_maps` and ``check_labels``.
    """
    pairs = pair_label_maps(images, labels)

    def tracked() -> Iterable[LabelledImage]:
        return track(pairs, "reading label maps", "image")

    names = tuple(names) or tuple(numbered_classes(tracked()))
    check_labels(tracked(), names)
    records = [
        {"path": str(p.image), "labels": str(p.labels), "width": p.width, "height": p.height}
        for p in pairs
    ]
    summary = f"{images}: {len(records)} images with label maps, {len(names)} classes"
    return Dataset(records, names, _read_label_target, f"{summary} ({', '.join(names)})")


def _read_label_target(record: Record) -> Target:
    return {"labels": read_label_map(record["labels"]).long()}
