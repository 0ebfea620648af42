"""Draw aerial views of land with a label map for each: a task of textures and small structures.

    python benchmarks/land.py OUTPUT [--train 24] [--val 24] [--test 60] [--size 128]

writes OUTPUT/{train,val,test}/*.png and OUTPUT/{train,val,test}_labels/*.png. Colors change from
picture to picture (season, light), so only texture, shape and
surroundings identify a class. The same arguments draw the same data.
"""

import argparse
import math
from pathlib import Path

import drawing
import numpy as np
from drawing import Generator, Pose
from PIL import Image

from e3va.utils.atomic import rename_atomically

SEED = 4711
CLASSES = ("meadow", "water", "forest", "field", "road", "roof")
_PLAIN, _STRIPES, _DOTS, _CLOUDS, _GRAIN = 0, 2, 4, 5, 6  # places in drawing.TEXTURES
_SQUARE = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])


def _mix(size: int, kind: int, one, other, rng: Generator) -> np.ndarray:
    """Return two colors mixed by a texture, [size, size, 3]."""
    weight = drawing.TEXTURES[kind](size, rng).astype(np.float32)[..., None]
    one, other = np.float32(one), np.float32(other)
    return one + (other - one) * weight


def _shades(base, spread: float, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    colour = np.clip(np.array(base) + rng.normal(0, 0.12, 3), 0, 1)
    return colour, np.clip(colour + rng.choice([-1, 1]) * rng.uniform(0.5, 1) * spread, 0, 1)


def _lay(picture, labels, name: str, alpha: np.ndarray, fill: np.ndarray) -> None:
    drawing.paint(picture, alpha.astype(np.float32), fill)
    labels[alpha > 0.5] = CLASSES.index(name)


def _fields(picture, labels, size: int, rng: Generator) -> None:
    for _ in range(int(rng.integers(1, 5))):
        centre, radius = tuple(rng.uniform(0, size, 2)), rng.uniform(0.12, 0.28) * size
        outline = _SQUARE * [1, rng.uniform(0.5, 1)] + rng.normal(0, 0.12, (4, 2))
        points = Pose(centre, radius, rng.uniform(0, math.pi)).place(outline)
        one, other = _shades(rng.choice([[0.6, 0.5, 0.3], [0.45, 0.55, 0.25]]), 0.25, rng)
        fill = _mix(size, _STRIPES, one, other, rng)
        _lay(picture, labels, "field", drawing.cover(points, size), fill)


def _roads(picture, labels, size: int, rng: Generator) -> list[np.ndarray]:
    roads = []
    for _ in range(int(rng.integers(1, 4))):
        angle, bend = rng.uniform(0, 2 * math.pi), rng.normal(0, 0.25)
        along = np.linspace(-1, 1, 24)
        line = np.stack([1.6 * along, bend * along**2], axis=1)
        points = Pose(tuple(rng.uniform(0.2, 0.8, 2) * size), size, angle).place(line)
        # Forth and back, because stroke() closes the outline and a road has two ends.
        alpha = drawing.stroke(np.concatenate([points, points[::-1]]), size, rng.uniform(2.5, 5))
        one, other = _shades([0.5, 0.48, 0.46], 0.1, rng)
        _lay(picture, labels, "road", alpha, _mix(size, _GRAIN, one, other, rng))
        roads.append(points)
    return roads


def _roofs(picture, labels, roads: list[np.ndarray], size: int, rng: Generator) -> None:
    for _ in range(int(rng.integers(2, 9))):
        road = roads[int(rng.integers(len(roads)))]
        place = int(rng.integers(1, len(road)))
        along = road[place] - road[place - 1]
        along /= np.linalg.norm(along) + 1e-6
        away = np.array([-along[1], along[0]]) * rng.choice([-1, 1]) * rng.uniform(8, 14)
        pose = Pose(tuple(road[place] + away), rng.uniform(4, 8), math.atan2(along[1], along[0]))
        one, other = _shades([0.55, 0.35, 0.3], 0.3, rng)
        for half, colour in ((-0.35, one), (0.35, other)):  # two sides of a ridge
            points = pose.place(_SQUARE * [1, 0.35] + [0, half])
            fill = _mix(size, _PLAIN, colour, colour, rng)
            _lay(picture, labels, "roof", drawing.cover(points, size), fill)


def draw_view(size: int, rng: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a view [size, size, 3] uint8 and its labels [size, size] uint8."""
    picture = _mix(size, _CLOUDS, *_shades([0.45, 0.55, 0.3], 0.2, rng), rng)
    labels = np.zeros((size, size), np.uint8)
    height = 0.7 * drawing.smooth_noise(size, 3, rng) + 0.3 * drawing.smooth_noise(size, 8, rng)
    _fields(picture, labels, size, rng)
    forest = _mix(size, _DOTS, *_shades([0.3, 0.42, 0.22], 0.25, rng), rng)
    forest += 0.15 * (drawing.smooth_noise(size, size // 3, rng)[..., None] - 0.5)
    _lay(picture, labels, "forest", height > rng.uniform(0.55, 0.75), forest)
    roads = _roads(picture, labels, size, rng)
    _roofs(picture, labels, roads, size, rng)
    water = _mix(size, _CLOUDS, *_shades([0.3, 0.4, 0.45], 0.1, rng), rng)
    _lay(picture, labels, "water", height < rng.uniform(0.2, 0.42), water)
    season = rng.normal(0, 0.08, 3).astype(np.float32)
    return drawing.finish(picture + season, rng), labels


def draw_data(folder: Path, counts: dict[str, int], size: int) -> None:
    """Write the splits: name → number of pictures."""
    rng = np.random.default_rng(SEED)
    for split, count in counts.items():
        for name in (split, f"{split}_labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(1, count + 1):
            picture, labels = draw_view(size, rng)
            for name, array in ((split, picture), (f"{split}_labels", labels)):
                with rename_atomically(folder / name / f"{number:04d}.png") as temporary:
                    Image.fromarray(array).save(temporary, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=24, help="training images")
    parser.add_argument("--val", type=int, default=24, help="validation images")
    parser.add_argument("--test", type=int, default=60, help="test images")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    args = parser.parse_args()
    counts = {"train": args.train, "val": args.val, "test": args.test}
    draw_data(args.output, counts, args.size)
    print(f"drew {sum(counts.values())} views with {', '.join(CLASSES)} into {args.output}")


if __name__ == "__main__":
    main()
