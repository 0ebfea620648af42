"""The batch on which every method trains: drawn rectangles and discs, always the same."""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

OBJECTS = 40  # in each image
CLASSES = 80
CORNERS = 24  # of a disc's polygon

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Drawn:
    """One image with its objects.

    Attributes:
        image: uint8 [3, H, W].
        polygons: corners (x, y) of each object in pixels.
        classes: class of each object, from 0 to ``CLASSES`` − 1.
    """

    image: Tensor
    polygons: list[Points]
    classes: list[int]

    @property
    def boxes(self) -> Tensor:
        """[objects, 4]: x0, y0, x1, y1."""
        sides = [
            [f(p[axis] for p in points) for f in (min, max) for axis in (0, 1)]
            for points in self.polygons
        ]
        return torch.tensor(sides)


def draw(height: int, width: int, seed: int) -> Drawn:
    """Draw an image of exactly ``height`` × ``width`` pixels with ``OBJECTS`` objects."""
    rng = random.Random(seed)
    size = max(1, width // 8), max(1, height // 8)
    noise = bytes(rng.randrange(256) for _ in range(3 * size[0] * size[1]))
    small = Image.frombytes("RGB", size, noise)
    sheet = small.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(sheet)
    polygons = [_outline(rng, height, width) for _ in range(OBJECTS)]
    for points in polygons:
        pen.polygon(points, fill=tuple(rng.randrange(256) for _ in range(3)))
    pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    image = pixels.view(height, width, 3).permute(2, 0, 1).contiguous()
    return Drawn(image, polygons, [rng.randrange(CLASSES) for _ in polygons])


def _outline(rng: random.Random, height: int, width: int) -> Points:
    """Draw a rectangle or a disc with sides from 1/20 to 1/3 of the image's sides."""
    high, wide = (
        side * math.exp(rng.uniform(math.log(0.05), math.log(1 / 3))) for side in (height, width)
    )
    left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
    if rng.random() < 0.5:
        return [(left, top), (left + wide, top), (left + wide, top + high), (left, top + high)]
    turns = [2 * math.pi * corner / CORNERS for corner in range(CORNERS)]
    return [
        (left + wide * (1 + math.cos(t)) / 2, top + high * (1 + math.sin(t)) / 2) for t in turns
    ]


def detectron2_examples(drawn: list[Drawn], device: torch.device) -> list[dict[str, Any]]:
    """Convert images to the form of Detectron2's data loaders."""
    from detectron2.structures import Boxes, Instances, PolygonMasks

    examples = []
    for one in drawn:
        size = tuple(one.image.shape[1:])
        instances = Instances(size)
        instances.gt_boxes = Boxes(one.boxes)
        instances.gt_classes = torch.tensor(one.classes)
        flat = [[[c for point in points for c in point]] for points in one.polygons]
        instances.gt_masks = PolygonMasks(flat)
        examples.append(
            {
                "image": one.image.to(device),
                "instances": instances.to(device),
                "height": size[0],
                "width": size[1],
            }
        )
    return examples


def torchvision_examples(
    drawn: list[Drawn], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Convert images to the form of torchvision's detectors: images in [0, 1], and targets."""
    images = [one.image.to(device).float() / 255 for one in drawn]
    targets = [
        {
            "boxes": one.boxes.to(device),
            "labels": torch.tensor(one.classes, device=device) + 1,
            "masks": torch.stack([_mask(p, one.image) for p in one.polygons]).to(device),
        }
        for one in drawn
    ]
    return images, targets


def _mask(points: Points, image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    sheet = Image.new("L", (width, height))
    ImageDraw.Draw(sheet).polygon(points, fill=1)
    return torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).view(height, width)
