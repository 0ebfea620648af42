"""Predictions of a trained model: pictures, and files for other programs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ..utils.atomic import atomic_open, make_folder, rename_atomically
from ..utils.colors import COLORS
from .evaluate import to_coco
from .masks import encode_masks
from .models import ModelConfig
from .predictor import Photo, PredictOptions, Predictor, for_each_image
from .tiles import Found

READABLE = 480  # pixels of the shorter side; labels would cover smaller pictures
BAND = 256  # rows of a label map that are worked on at once
LEVEL = 2  # of PNG: the default, 6, takes several times as long for files hardly smaller
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
        masks = encode_masks(found["masks"][shown])
        taken = torch.zeros(height, width, dtype=torch.bool)
        for place, color in enumerate(colors):
            top, left, mask = masks.crop(place)
            rows, columns = (slice(n, n + m) for n, m in zip((top, left), mask.shape, strict=True))
            free = mask.bool() & ~taken[rows, columns]  # a pixel shows its first object
            taken[rows, columns] |= free
            area = canvas[:, top * scale :, left * scale :]
            _paint(area, _enlarge(free, scale), color, 0.45)
    boxes = (found["boxes"][shown] * scale).round()
    return _write_texts(canvas, boxes, colors, texts)


def _to_bytes(image: Tensor) -> Tensor:
    return image if image.dtype == torch.uint8 else (image * 255).round_().to(torch.uint8)


def _paint(canvas: Tensor, mask: Tensor, color: tuple[int, int, int], alpha: float) -> None:
    """Blend a color into the pixels of ``mask`` [h, w], which begins at the canvas's corner."""
    chosen = mask.numpy()
    for channel, value in zip(canvas[:, : mask.shape[0], : mask.shape[1]], color, strict=True):
        pixels = channel.numpy()  # a view
        pixels[chosen] = _blend(value, alpha)[pixels[chosen]]


def _blend(value: int, alpha: float) -> np.ndarray:
    """Return what each value of a channel becomes, [256] uint8."""
    return (np.arange(256) * (1 - alpha) + value * alpha).astype(np.uint8)


def _colors(labels: list[int]) -> list:
    return [COLORS[(label - 1) % len(COLORS)] for label in labels]


def _write_texts(canvas: Tensor, boxes: Tensor, colors: list, texts: list[str]) -> Tensor:
    """Draw boxes, each with a text at its corner; torchvision's texts are too small to read."""
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for box, color in zip(boxes.long().tolist(), colors, strict=True):
        draw.rectangle(box, outline=color, width=2)
    for text, (x, y) in zip(texts, boxes[:, :2].tolist(), strict=True):
        x1, y1, x2, y2 = draw.textbbox((x + 3, max(y - 17, 0)), text, font)
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), fill=(32, 32, 32))
        draw.text((x + 3, max(y - 17, 0)), text, (255, 255, 255), font)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def draw_labels(image: Tensor, labels: Tensor) -> Tensor:
    """Draw classes, except the first one, over an image [3, H, W], uint8 or float; return uint8."""
    canvas = _to_bytes(image).clone()
    present = [label for label in find_labels(labels) if 0 < label < 255]
    for label, color in zip(present, _colors(present), strict=True):
        for pixels, own in zip(canvas.split(BAND, 1), labels.split(BAND), strict=True):
            _paint(pixels, own == label, color, 0.5)
    return canvas


def find_labels(labels: Tensor) -> list[int]:
    """Return the labels that a label map [H, W] has, in order."""
    # In bands, because torch sorts a copy of all pixels.
    return sorted({label for band in labels.split(BAND) for label in band.unique().tolist()})


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
        Image.fromarray(array).save(temporary, format="PNG", compress_level=LEVEL)


@dataclass(frozen=True)
class Outcome:
    """What was found in an image: a line, and the records for the COCO-format file."""

    text: str
    listed: dict | None = None
    records: list[dict] = field(default_factory=list)


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

    def write(self, photo: Photo, found: Found) -> tuple[Tensor, Outcome]:
        """Write picture and label map of an image; return the picture, and what :meth:`add` takes.

        Several threads may write at once.
        """
        make_folder(self.folder)
        if "boxes" in found:
            records = to_coco(found, photo.number, self.config.category_ids)
            height, width = photo.size
            listed = {"id": photo.number, "file_name": str(photo.path)}
            listed |= {"height": height, "width": width}
            outcome = Outcome(f"{len(records)} objects", listed, records)
        else:
            labels = found["labels"]
            write_png(labels.to(torch.uint8), make_folder(self.folder / "labels") / photo.name)
            outcome = Outcome(f"{len(find_labels(labels))} classes")
        picture = draw_found(photo.pixels, found, self.config.classes)
        write_png(picture, self.folder / photo.name)
        return picture, outcome

    def add(self, outcome: Outcome) -> str:
        """Add the objects of an image to the COCO-format file; return how much was found."""
        if outcome.listed:
            self.listed.append(outcome.listed)
            self.annotations += outcome.records
        return outcome.text

    def finish(self) -> None:
        """Write the COCO-format file."""
        if not self.listed:
            return
        # Images of equal size came together.
        self.listed.sort(key=lambda image: image["id"])
        self.annotations.sort(key=lambda annotation: annotation["image_id"])
        path = self.folder / "predictions.json"
        _write_coco(self.listed, self.annotations, self.config, path)
        print(f"wrote {path}: {len(self.annotations)} objects in COCO format")
        if not self.annotations:
            print(
                f"no object has a score of {self.threshold:g}: a lower --threshold shows weaker "
                "ones"
            )


def predict_images(
    model: nn.Module,
    config: ModelConfig,
    images: list[Path],
    folder: Path,
    threshold: float,
    options: PredictOptions = PredictOptions(),  # noqa: B008
) -> list[str]:
    """Predict, draw, and write :class:`Results`; return one line for each unreadable image.

    Args:
        model: model in evaluation mode.
        config: the model's config.
        images: paths of the images.
        folder: folder for the results.
        threshold: smallest score of an object.
        options: batches, precision and tiles.

    Raises:
        UserError: a result cannot be written.
    """
    results = Results(config, folder, threshold)
    predictor = Predictor({"": model}, threshold, options)

    failed = for_each_image(
        images,
        folder,
        predictor,
        write=lambda photo, found: results.write(photo, found[""])[1],
        add=results.add,
    )
    results.finish()
    return failed


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model; the CPU for one without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


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
