"""Outlines, textures and occlusion: the pieces of drawn pictures.

Everything follows from the given generator. Pictures are [H, W, 3] float32 in 0..1;
masks [H, W] bool; points (x, y) in pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Generator = np.random.Generator


def circle(count: int = 40, start: float = 0.0, extent: float = 2 * math.pi) -> np.ndarray:
    """Return points [count, 2] on the unit circle."""
    angle = start + np.linspace(0, extent, count, endpoint=extent < 2 * math.pi)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def star(tips: int, inner: float) -> np.ndarray:
    """Return a star with ``tips`` points; ``inner`` is the radius between them."""
    points = circle(2 * tips)
    points[1::2] *= inner
    return points


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 17


def _ring_sector() -> np.ndarray:
    outer = circle(24, 0, 1.4 * math.pi)
    return np.concatenate([outer, 0.55 * outer[::-1]])


# Unit outlines [N, 2] within about [-1, 1]²; a class of drawn shapes is a place in this list.
OUTLINES: dict[str, np.ndarray] = {
    "disc": circle(),
    "half disc": circle(24, 0, math.pi) - [0, 0.4],
    "triangle": circle(3),
    "square": circle(4),
    "bar": np.array([[-1, -0.22], [1, -0.22], [1, 0.22], [-1, 0.22]]),
    "pentagon": circle(5),
    "hexagon": circle(6),
    "star": star(5, 0.45),
    "spark": star(4, 0.35),
    "gear": star(10, 0.75),
    "cross": np.array(
        [[-1, -0.3], [-0.3, -0.3], [-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3]]
        + [[1, 0.3], [0.3, 0.3], [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3]]
    ),
    "corner": np.array(
        [[-0.8, -0.8], [-0.2, -0.8], [-0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [-0.8, 0.8]]
    ),
    "arrow": np.array(
        [[-1, -0.22], [0.1, -0.22], [0.1, -0.65], [1, 0], [0.1, 0.65], [0.1, 0.22], [-1, 0.22]]
    ),
    "heart": _heart(),
    "crescent": np.concatenate(
        [circle(24, 0.5, 5.28), (circle(24, 0.75, 4.78) * 0.8 + [0.32, 0])[::-1]]
    ),
    "hook": _ring_sector(),
    "drop": np.concatenate([circle(24, -0.6, math.pi + 1.2) * 0.7 + [0, 0.3], [[0, -1.0]]]),
    "bow": np.array([[-1, -0.7], [0, -0.12], [1, -0.7], [1, 0.7], [0, 0.12], [-1, 0.7]]),
}


@dataclass
class Pose:
    """The pose of a unit outline: a rotation and a stretch, then a place in pixels."""

    centre: tuple[float, float]
    radius: float
    angle: float = 0.0
    stretch: float = 1.0
    flip: bool = False

    def place(self, outline: np.ndarray) -> np.ndarray:
        """Map unit points [N, 2] to pixels [N, 2]."""
        points = outline * [self.radius * (-1 if self.flip else 1), self.radius * self.stretch]
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return points @ np.array([[cos, sin], [-sin, cos]]) + self.centre


def cover(points: np.ndarray, size: int) -> np.ndarray:
    """Return the share of each pixel that a polygon covers: [size, size], from 3×3 samples."""
    canvas = Image.new("L", (3 * size, 3 * size))
    ImageDraw.Draw(canvas).polygon([tuple(3 * p) for p in points], fill=255)
    return np.asarray(canvas.reduce(3), np.float32) / 255


def stroke(points: np.ndarray, size: int, width: float) -> np.ndarray:
    """Return the same as :func:`cover` for an outline drawn with a pen of ``width`` pixels."""
    canvas = Image.new("L", (3 * size, 3 * size))
    closed = [tuple(3 * p) for p in (*points, points[0], points[1])]
    ImageDraw.Draw(canvas).line(closed, fill=255, width=round(3 * width), joint="curve")
    return np.asarray(canvas.reduce(3), np.float32) / 255


def smooth_noise(size: int, cells: int, rng: Generator) -> np.ndarray:
    """Return noise [size, size] in 0..1 that varies over ``size / cells`` pixels."""
    grid = rng.integers(0, 256, (cells + 1, cells + 1), dtype=np.uint8)
    image = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32) / 255


def _waves(size: int, rng: Generator) -> np.ndarray:
    angle, period = rng.uniform(0, math.pi), rng.uniform(4, 20)
    y, x = np.mgrid[:size, :size]
    return np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)


def _plain(size: int, rng: Generator) -> np.ndarray:
    return np.zeros((size, size))


def _gradient(size: int, rng: Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:size, :size] / size
    return x * math.cos(angle) + y * math.sin(angle)


def _stripes(size: int, rng: Generator) -> np.ndarray:
    return np.clip(_waves(size, rng) * 4, -1, 1) * 0.5 + 0.5


def _checks(size: int, rng: Generator) -> np.ndarray:
    return np.clip(_waves(size, rng) * _waves(size, rng) * 6, -1, 1) * 0.5 + 0.5


def _dots(size: int, rng: Generator) -> np.ndarray:
    period, angle = rng.uniform(6, 16), rng.uniform(0, math.pi)
    y, x = np.mgrid[:size, :size] * (2 * math.pi / period)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    return np.clip((np.cos(u) + np.cos(v) - 0.6) * 3, 0, 1)


def _clouds(size: int, rng: Generator) -> np.ndarray:
    return 0.6 * smooth_noise(size, 4, rng) + 0.4 * smooth_noise(size, 13, rng)


def _grain(size: int, rng: Generator) -> np.ndarray:
    return smooth_noise(size, size // int(rng.integers(2, 5)), rng)


TEXTURES = (_plain, _gradient, _stripes, _checks, _dots, _clouds, _grain)


def texture(size: int, rng: Generator, kind: int | None = None) -> np.ndarray:
    """Mix two colors by a random (or the given) texture into a picture [size, size, 3]."""
    kind = int(rng.integers(len(TEXTURES))) if kind is None else kind
    mix = TEXTURES[kind](size, rng).astype(np.float32)[..., None]
    one, other = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    if rng.random() < 0.5:  # two shades of one color
        other = np.clip(one + rng.uniform(-0.35, 0.35), 0, 1).astype(np.float32)
    return one + (other - one) * mix


def paint(picture: np.ndarray, alpha: np.ndarray, fill: np.ndarray) -> None:
    """Lay ``fill`` over ``picture`` in place where ``alpha`` [H, W] covers it."""
    rows, columns = np.any(alpha > 0, axis=1).nonzero()[0], np.any(alpha > 0, axis=0).nonzero()[0]
    if len(rows):
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        picture[window] += alpha[window][..., None] * (fill[window] - picture[window])


def shade(fill: np.ndarray, rng: Generator) -> np.ndarray:
    """Add light from one side."""
    return fill * (1 + rng.uniform(0, 0.5) * (_gradient(fill.shape[0], rng)[..., None] - 0.25))


def finish(picture: np.ndarray, rng: Generator) -> np.ndarray:
    """Add the blur, contrast and noise of a camera: [H, W, 3] in 0..1 → uint8."""
    picture = picture * rng.uniform(0.7, 1.15) + rng.uniform(-0.05, 0.15)
    if rng.random() < 0.4:
        picture = sum(np.roll(picture, s, a) for s in (-1, 0, 1) for a in (0, 1)) / 6
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(0, 0.06)
    return ((picture + noise).clip(0, 1) * 255).astype(np.uint8)
