"""Predictions of a trained model: pictures, and files for other programs."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..utils.atomic import atomic_open, make_folder, rename_atomically
from ..utils.colors import COLORS
from ..utils.errors import UserError
from ..utils.paths import free_name
from ..utils.progress import Progress
from .data import read_image, to_tensor
from .evaluate import to_coco
from .models import ModelConfig

READABLE = 480  # pixels of the shorter side; labels would cover smaller pictures


def draw_instances(
    image: Tensor, found: dict[str, Tensor], classes: tuple[str, ...], threshold: float = 0.0
) -> Tensor:
    """Draw the objects of a detector's output, or of a target, over an image [3, H, W] in 0..1.

    Masks, boxes, class names and scores of at least ``threshold`` are drawn. Small images are
    enlarged: the result is [3, H', W'] uint8. ``classes`` has the names of the labels from 1.
    """
    scale = max(1, -(-READABLE // min(image.shape[-2:])))
    canvas = _enlarge((image * 255).round().to(torch.uint8), scale)
    masks = found["masks"].reshape(-1, *image.shape[-2:]) >= 0.5
    scores = found.get("scores")
    shown = torch.ones(len(masks), dtype=torch.bool) if scores is None else scores >= threshold
    if not shown.any():
        return canvas
    labels = found["labels"][shown].tolist()
    colors, texts = _colors(labels), [classes[label - 1] for label in labels]
    if scores is not None:
        texts = [f"{t} {s:.0%}" for t, s in zip(texts, scores[shown].tolist(), strict=True)]
    # torchvision paints pixels of several masks black: each goes to the first mask that has it.
    disjoint, taken = masks[shown], torch.zeros_like(masks[0])
    for mask in disjoint:
        mask &= ~taken
        taken |= mask
    canvas = draw_segmentation_masks(canvas, _enlarge(disjoint, scale), alpha=0.45, colors=colors)
    boxes = (found["boxes"][shown] * scale).round()
    return _write_texts(draw_bounding_boxes(canvas, boxes, colors=colors, width=2), boxes, texts)


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
    """Draw classes, except the first one, over an image [3, H, W] in 0..1; return uint8."""
    canvas = (image * 255).round().to(torch.uint8)
    present = [int(label) for label in labels.unique() if 0 < label < 255]
    if not present:
        return canvas
    masks = torch.stack([labels == label for label in present])
    return draw_segmentation_masks(canvas, masks, alpha=0.5, colors=_colors(present))


def _enlarge(pixels: Tensor, scale: int) -> Tensor:
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _write_png(pixels: Tensor, path: Path) -> None:
    """Write [3, H, W] or [H, W] uint8 as PNG, atomically."""
    array = (pixels.permute(1, 2, 0) if pixels.dim() == 3 else pixels).numpy()
    with rename_atomically(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


@torch.no_grad()
def predict_images(
    model: nn.Module, config: ModelConfig, images: list[Path], folder: Path, threshold: float
) -> list[str]:
    """Predict, draw, and write the results; return one line for each image that is unreadable.

    ``<name>.png`` are the pictures. For instances, ``predictions.json`` is a COCO-format file
    (images, categories, annotations with a ``score`` of at least ``threshold``). For label maps,
    ``labels/<name>.png`` has the class number in every pixel.
    """
    device = next(model.parameters()).device
    listed, annotations, failed, taken = [], [], [], set()
    with Progress(0, len(images), unit="image", what="predicting") as progress:
        for number, path in enumerate(images, 1):
            try:
                image = to_tensor(read_image(path))
            except UserError as error:
                failed.append(error.line)
                continue
            make_folder(folder)
            found = {k: v.cpu() for k, v in model([image.to(device)])[0].items()}
            name = free_name(path, ".png", taken)
            if "boxes" in found:
                kept = {k: v[found["scores"] >= threshold] for k, v in found.items()}
                size = dict(zip(("height", "width"), image.shape[-2:], strict=True))
                listed.append({"id": number, "file_name": str(path), **size})
                annotations += to_coco(kept, number, config.category_ids)
                picture = draw_instances(image, kept, config.classes)
                text = f"{len(kept['scores'])} objects"
            else:
                labels = found["labels"]
                _write_png(labels.to(torch.uint8), make_folder(folder / "labels") / name)
                picture = draw_labels(image, labels)
                text = f"{len(labels.unique())} classes"
            _write_png(picture, folder / name)
            progress.say(f"{path}: {text} -> {folder / name}")
            progress.step(number, {})
    if listed:
        _write_coco(listed, annotations, config, folder / "predictions.json")
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
