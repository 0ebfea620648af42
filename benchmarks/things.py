"""Draw a small data set of pen drawings of things, in COCO format and as label maps.

    python benchmarks/things.py OUTPUT [--train 300] [--val 60] [--size 128]

writes OUTPUT/{train,val}.json, OUTPUT/{train,val}/*.png and OUTPUT/{train,val}_labels/*.png (0 is
background, then the classes in their order). Things lie over one another; a mask is what shows of
the thing. The trunk of the package has only seen photographs, no pen drawings. The same arguments
draw the same data.
"""

import argparse
import json
import math
from pathlib import Path

import drawing
import numpy as np
import pycocotools.mask
from drawing import OUTLINES, Generator, Pose, circle
from PIL import Image

from e3va.utils.atomic import atomic_open, rename_atomically

SEED = 20231
LEAST_SHOWN = 0.35  # least visible share of a thing's area
_RECTANGLE = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
_RING = np.concatenate([circle(25, 0, 6.28), (0.55 * circle(25, 0, 6.28))[::-1]])


def _petals() -> list[np.ndarray]:
    petals = [circle(16) * [0.34, 0.26] + [0.6, 0]]
    turn = 2 * math.pi / 6
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    while len(petals) < 6:
        petals.append(petals[-1] @ rotation)
    return petals


# A thing is the outlines of its parts, in the order in which they are drawn.
THINGS: dict[str, list[np.ndarray]] = {
    "fish": [
        np.array([[-0.45, 0], [-1, -0.5], [-1, 0.5]]),
        circle() * [0.7, 0.42] + [0.2, 0],
        circle(12) * 0.08 + [0.6, -0.1],
    ],
    "house": [
        _RECTANGLE * [0.65, 0.45] + [0, 0.4],
        np.array([[-0.85, -0.02], [0, -0.85], [0.85, -0.02]]),
        _RECTANGLE * [0.14, 0.24] + [0.1, 0.61],
    ],
    "mug": [
        _RING * 0.42 + [0.5, 0],
        _RECTANGLE * [0.55, 0.65] + [-0.15, 0],
        _RECTANGLE * [0.55, 0.12] + [-0.15, -0.2],
    ],
    "key": [
        _RECTANGLE * [0.6, 0.11] + [0.35, 0],
        _RECTANGLE * [0.09, 0.2] + [0.86, 0.2],
        _RECTANGLE * [0.09, 0.16] + [0.55, 0.18],
        _RING * 0.45 + [-0.55, 0],
    ],
    "flower": [*_petals(), circle(20) * 0.3],
    "mushroom": [
        _RECTANGLE * [0.2, 0.5] + [0, 0.4],
        OUTLINES["half disc"] * [0.85, -0.85] - [0, 0.3],
    ],
}
CLASSES = tuple(THINGS)


def draw_thing(
    picture: np.ndarray, paper: np.ndarray, name: str, pose: Pose, rng: Generator
) -> np.ndarray:
    """Draw a thing's outlines with a pen over paper, and return the pixels that it covers."""
    size, width = len(picture), rng.uniform(0.8, 1.6)
    ink = paper + np.float32(rng.choice([-1, 1]) * rng.uniform(0.5, 0.9))
    covered = np.zeros((size, size), bool)
    for outline in THINGS[name]:
        points = pose.place(outline)
        alpha = drawing.cover(points, size)
        drawing.paint(picture, alpha, paper)
        drawing.paint(picture, drawing.stroke(points, size, width), ink)
        covered |= alpha > 0.5
    return covered


def draw_picture(size: int, rng: Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw a picture [size, size, 3] uint8 of two to six things, with (class, mask) of each."""
    paper = drawing.texture(size, rng)
    picture = paper.copy()
    things: list[tuple[int, np.ndarray, int]] = []
    for _ in range(int(rng.integers(2, 7))):
        index, radius = int(rng.integers(len(CLASSES))), rng.uniform(0.14, 0.26) * size
        centre = tuple(rng.uniform(0.7 * radius, size - 0.7 * radius, 2))
        pose = Pose(
            centre, radius, rng.uniform(-0.6, 0.6), rng.uniform(0.8, 1.1), rng.random() < 0.5
        )
        before = picture.copy()
        covered = draw_thing(picture, paper, CLASSES[index], pose, rng)
        left = [(i, mask & ~covered, area) for i, mask, area in things]
        if any(mask.sum() < LEAST_SHOWN * area for _, mask, area in left):
            picture = before  # it would hide most of another thing
            continue
        things = [*left, (index, covered, int(covered.sum()))]
    return drawing.finish(picture, rng), [(index, mask) for index, mask, _ in things]


def annotation(number: int, image_id: int, index: int, mask: np.ndarray) -> dict:
    """Return the COCO record of one thing, with its mask as compressed RLE."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": index + 1,
        "bbox": [float(v) for v in pycocotools.mask.toBbox(rle)],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
    }


def draw_split(folder: Path, split: str, count: int, size: int, rng: Generator) -> None:
    """Write ``folder/split/*.png``, ``folder/split_labels/*.png`` and ``folder/split.json``."""
    images, annotations = [], []
    for name in (split, f"{split}_labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id in range(1, count + 1):
        picture, things = draw_picture(size, rng)
        labels, file_name = np.zeros((size, size), np.uint8), f"{image_id:04d}.png"
        for index, mask in things:
            labels[mask] = index + 1
            annotations.append(annotation(len(annotations) + 1, image_id, index, mask))
        for name, array in ((split, picture), (f"{split}_labels", labels)):
            with rename_atomically(folder / name / file_name) as temporary:
                Image.fromarray(array).save(temporary, format="PNG")
        images.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    with atomic_open(folder / f"{split}.json", "w") as file:
        json.dump(data, file)


def draw_data(folder: Path, counts: dict[str, int], size: int) -> None:
    """Write the splits: name → number of pictures."""
    rng = np.random.default_rng(SEED)
    for split, count in counts.items():
        draw_split(folder, split, count, size, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=300, help="training images")
    parser.add_argument("--val", type=int, default=60, help="validation images")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    args = parser.parse_args()
    draw_data(args.output, {"train": args.train, "val": args.val}, args.size)
    print(f"drew {args.train} + {args.val} images with {', '.join(CLASSES)} into {args.output}")


if __name__ == "__main__":
    main()
