"""Predictions of a trained model: pictures, and files for other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..utils.atomic import atomic_open, make_folder, rename_atomically
from ..utils.colors import COLORS
from ..utils.errors import UserError
from ..utils.paths import free_name
from ..utils.progress import Progress
from .data import read_image, to_tensor
from .evaluate import to_coco
from .models import ModelConfig
from .transform import detect

READABLE = 480  # pixels of the shorter side; labels would cover smaller pictures
BAND = 256  # rows of pixels that are painted at once
LARGEST = 2000  # pixels of the longer side, to which small images are enlarged at most


def draw_instances(
    image: Tensor, found: dict[str, Tensor], classes: tuple[str, ...], threshold: float = 0.0
) -> Tensor:
    """Draw the objects of a detector's output, or of a target, over an image.

    Masks (if there are any), boxes, class names and scores of at least ``threshold`` are drawn.
    Small images are enlarged.

    Args:
        image: image [3, H, W], uint8 or float in 0..1.
        found: ``boxes``, ``labels``, and maybe ``masks`` (a tensor or run lengths) and ``scores``.
        classes: names of the labels from 1.
        threshold: smallest score of the objects that are drawn.

    Returns:
        The picture, [3, H', W'] uint8.
    """
    height, width = image.shape[-2:]
    scale = min(-(-READABLE // min(height, width)), LARGEST // max(height, width))
    scale = max(1, scale)
    canvas = _enlarge(_to_bytes(image).clone(), scale)
    scores, labels = found.get("scores"), found["labels"]
    shown = torch.ones(len(labels), dtype=torch.bool) if scores is None else scores >= threshold
    if not shown.any():
        return canvas
    labels = labels[shown].tolist()
    colors, texts = _colors(labels), [classes[label - 1] for label in labels]
    if scores is not None:
        texts = [f"{t} {s:.0%}" for t, s in zip(texts, scores[shown].tolist(), strict=True)]
    if "masks" in found:
        taken = torch.zeros(height, width, dtype=torch.bool)
        for mask, color in zip(found["masks"][shown], colors, strict=True):
            free = (mask.reshape(height, width) >= 0.5) & ~taken  # a pixel shows its first object
            taken |= free
            _paint(canvas, _enlarge(free, scale), color, 0.45)
    boxes = (found["boxes"][shown] * scale).round()
    return _write_texts(draw_bounding_boxes(canvas, boxes, colors=colors, width=2), boxes, texts)


def _to_bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image * 255).round_().to(torch.uint8)


def _paint(canvas: Tensor, mask: Tensor, color: Any, alpha: float) -> None:
    """Blend a color into the pixels of ``mask``, in bands: torchvision makes float copies."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return
    place = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    bands = zip(canvas[:, *place].split(BAND, 1), mask[place].split(BAND), strict=True)
    for pixels, own in bands:
        pixels.copy_(draw_segmentation_masks(pixels, own, alpha=alpha, colors=[color]))


def _colors(labels: list[int]) -> list:
    return [COLORS[(label - 1) % len(COLORS)] for label in labels]


def _write_texts(canvas: Tensor, boxes: Tensor, texts: list[str]) -> Tensor:
    """Write a text at each box's corner; torchvision's texts are too small to read."""
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for text, (x, y) in zip(texts, boxes[:, :2].tolist(), strict=True):
        x1, y1, x2, y2 = draw.textbbox((x + 3, max(y - 17, 0)), text, font)
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), fill=(32, 32, 32))
        draw.text((x + 3, max(y - 17, 0)), text, (255, 255, 255), font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def draw_labels(image: Tensor, labels: Tensor) -> Tensor:
    """Draw classes, except the first one, over an image [3, H, W], uint8 or float; return uint8."""
    canvas = _to_bytes(image).clone()
    present = [int(label) for label in labels.unique() if 0 < label < 255]
    for label, color in zip(present, _colors(present), strict=True):
        _paint(canvas, labels == label, color, 0.5)
    return canvas


def draw_found(image: Tensor, found: dict[str, Tensor], classes: tuple[str, ...]) -> Tensor:
    """Draw a model's output over an image: objects, or the classes of a label map."""
    if "boxes" in found:
        return draw_instances(image, found, classes)
    return draw_labels(image, found["labels"])


def _enlarge(pixels: Tensor, scale: int) -> Tensor:
    if scale == 1:
        return pixels
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def write_png(pixels: Tensor, path: Path) -> None:
    """Write [3, H, W] or [H, W] uint8 as PNG, atomically."""
    array = (pixels.permute(1, 2, 0) if pixels.dim() == 3 else pixels).numpy()
    with rename_atomically(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


class Results:
    """The files of one model's predictions.

    ``<name>.png`` are the pictures. For instances, ``predictions.json`` is a COCO-format file
    (images, categories, annotations with a ``score`` of at least ``threshold``). For label maps,
    ``labels/<name>.png`` has the class number in every pixel.
    """

    def __init__(self, config: ModelConfig, folder: Path, threshold: float):
        self.config, self.folder, self.threshold = config, folder, threshold
        self.listed: list[dict] = []
        self.annotations: list[dict] = []

    def add(
        self, number: int, path: Path, name: str, image: Image.Image, found: dict[str, Tensor]
    ) -> tuple[Tensor, str]:
        """Write the results of an image; return the picture, and how much was found."""
        pixels = v2.functional.pil_to_tensor(image)
        make_folder(self.folder)
        if "boxes" in found:
            size = {"height": image.height, "width": image.width}
            self.listed.append({"id": number, "file_name": str(path), **size})
            self.annotations += to_coco(found, number, self.config.category_ids)
            text = f"{len(found['scores'])} objects"
        else:
            labels = found["labels"]
            write_png(labels.to(torch.uint8), make_folder(self.folder / "labels") / name)
            text = f"{len(labels.unique())} classes"
        picture = draw_found(pixels, found, self.config.classes)
        write_png(picture, self.folder / name)
        return picture, text

    def finish(self) -> None:
        """Write the COCO-format file."""
        if not self.listed:
            return
        path = self.folder / "predictions.json"
        _write_coco(self.listed, self.annotations, self.config, path)
        print(f"wrote {path}: {len(self.annotations)} objects in COCO format")
        if not self.annotations:
            print(
                f"no object has a score of {self.threshold:g}: a lower --threshold shows weaker "
                "ones"
            )


@torch.no_grad()
def predict_images(
    model: nn.Module, config: ModelConfig, images: list[Path], folder: Path, threshold: float
) -> list[str]:
    """Predict, draw, and write :class:`Results`; return one line for each unreadable image."""
    results = Results(config, folder, threshold)

    def predict(number: int, path: Path, name: str, image: Image.Image) -> str:
        found = detect(model, to_tensor(image).to(device_of(model)), threshold)
        return results.add(number, path, name, image, found)[1]

    failed = for_each_image(images, folder, predict)
    results.finish()
    return failed


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model."""
    return next(model.parameters()).device


def for_each_image(
    images: list[Path], folder: Path, predict: Callable[[int, Path, str, Image.Image], str]
) -> list[str]:
    """Call ``predict(number, path, name of its picture, image)`` for each image that is readable.

    Its result is shown as what was found. Returns one line for each other image.
    """
    failed, taken = [], set()
    with Progress(0, len(images), unit="image", what="predicting") as progress:
        for number, path in enumerate(images, 1):
            try:
                image = read_image(path)
            except UserError as error:
                failed.append(error.line)
                continue
            name = free_name(path, ".png", taken)
            text = predict(number, path, name, image)
            progress.say(f"{path}: {text} -> {folder / name}")
            progress.step(number, {})
    return failed


def _write_coco(images: list, found: list[dict], config: ModelConfig, path: Path) -> None:
    areas = [annotation["bbox"][2] * annotation["bbox"][3] for annotation in found]
    named = zip(config.category_ids, config.classes, strict=True)
    data = {
        "images": images,
        "annotations": [
            {"id": number, "iscrowd": 0, "area": area, **annotation}
            for number, (area, annotation) in enumerate(zip(areas, found, strict=True), 1)
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in named],
    }
    with atomic_open(path, "w") as file:
        json.dump(data, file, indent=1)
