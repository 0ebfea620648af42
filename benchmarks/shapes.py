"""Draw a small instance-segmentation data set of shapes in COCO format, without downloads.

    python benchmarks/shapes.py OUTPUT [--train 40] [--val 10] [--size 160]

writes OUTPUT/{train,val}.json and OUTPUT/{train,val}/*.png. The same arguments draw the same data.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from e3va.checkpoint import atomic_open

CLASSES = ("disc", "square", "triangle")
CORNERS = {"disc": 40, "square": 4, "triangle": 3}


def polygon(kind: str, centre: np.ndarray, radius: float, angle: float) -> list[tuple]:
    """Corners (x, y) of a regular polygon; a disc has forty."""
    steps = angle + np.arange(CORNERS[kind]) * 2 * math.pi / CORNERS[kind]
    return [tuple(centre + radius * np.array([math.cos(t), math.sin(t)])) for t in steps]


def draw_image(size: int, rng: np.random.Generator) -> tuple[Image.Image, list[tuple[int, list]]]:
    """One picture of two to five shapes over noise, and (class index, polygon) of each.

    Shapes keep their distance, so every polygon is wholly visible.
    """
    noise = rng.normal(110, 25, (size, size, 3)).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(noise)
    canvas = ImageDraw.Draw(picture)
    shapes, placed = [], []
    for _ in range(rng.integers(2, 6)):
        radius = rng.uniform(0.09, 0.18) * size
        centre = rng.uniform(radius, size - radius, 2)
        if any(np.linalg.norm(centre - c) < radius + r for c, r in placed):
            continue
        placed.append((centre, radius))
        index = int(rng.integers(len(CLASSES)))
        points = polygon(CLASSES[index], centre, radius, rng.uniform(0, math.pi))
        canvas.polygon(points, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
        shapes.append((index, points))
    return picture, shapes


def annotation(number: int, image_id: int, index: int, points: list[tuple]) -> dict:
    """The COCO record of one shape."""
    xs, ys = np.array(points).T
    area = 0.5 * abs(float(xs @ np.roll(ys, 1) - ys @ np.roll(xs, 1)))
    box = [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": index + 1,
        "bbox": [round(float(v), 2) for v in box],
        "area": area,
        "iscrowd": 0,
        "segmentation": [[round(float(v), 2) for point in points for v in point]],
    }


def draw_split(folder: Path, name: str, count: int, size: int, rng: np.random.Generator) -> None:
    """Write ``folder/name/*.png`` and ``folder/name.json``."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(1, count + 1):
        picture, shapes = draw_image(size, rng)
        file_name = f"{image_id:04d}.png"
        picture.save(folder / name / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for index, points in shapes:
            annotations.append(annotation(len(annotations) + 1, image_id, index, points))
    categories = [{"id": i + 1, "name": kind} for i, kind in enumerate(CLASSES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_open(folder / f"{name}.json", "w") as file:
        json.dump(data, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=40, help="training images")
    parser.add_argument("--val", type=int, default=10, help="validation images")
    parser.add_argument("--size", type=int, default=160, help="side in pixels")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for name, count in (("train", args.train), ("val", args.val)):
        draw_split(args.output, name, count, args.size, rng)
    print(f"drew {args.train} + {args.val} images with {', '.join(CLASSES)} into {args.output}")


if __name__ == "__main__":
    main()
