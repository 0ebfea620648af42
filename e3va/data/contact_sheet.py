"""A contact sheet: images of every class with their annotations drawn on them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image, ImageDraw, ImageFont

from ..utils.atomic import atomic_open
from ..utils.colors import COLORS
from ..utils.errors import UserError
from .images import Size, in_threads, read_image
from .label_maps import IGNORED, read_label_map
from .masks import to_rle
from .problems import Findings

WIDTH = 1600  # of the sheet, in pixels
COLUMNS, GAP = 3, 16
CAPTION, TITLE, ROW = 24, 44, 30  # heights of a caption, the title, and a row of the legend
NAME = 15  # height of a class name beside an object
TILE = (WIDTH - GAP * (COLUMNS + 1)) // COLUMNS
LEGEND = 60  # largest number of classes in the legend

# Class names are written beside the objects, since colors repeat where there are many classes.
FIRST_LABEL = (150, 150, 150)  # of label 0, the background in most label maps
PAPER, INK, DARK = (255, 255, 255), (20, 20, 20), (0, 0, 0)
FILL = 0.4  # opacity of a mask's color

Color = tuple[int, ...]


@dataclass(frozen=True)
class Picture:
    """Content of a tile: an image with objects or with a label map."""

    image: str | None  # path; None for a label map without an image
    size: Size
    caption: str
    classes: frozenset[int]  # class indices that occur
    objects: Sequence[tuple[int, list[float], Any]] = ()  # class index, box, segmentation or None
    labels: str | None = None  # path of the label map
    first: int = 0  # label of class 0 in the label map


def choose(pictures: Sequence[Picture], count: int) -> list[int]:
    """Choose ``count`` pictures, spread over the classes and over the data; return their indices.

    The classes take turns, the rarest first. Each takes the middle one of its pictures that are
    not taken.
    """
    of_class: dict[int, list[int]] = {}
    for index, picture in enumerate(pictures):
        for label in picture.classes:
            of_class.setdefault(label, []).append(index)
    turns = sorted(of_class.values(), key=lambda own: (len(own), own))
    chosen: set[int] = set()
    for own in (*turns * count, *[range(len(pictures))] * count):
        left = [index for index in own if index not in chosen]
        if len(chosen) == count:
            break
        chosen.update(left[len(left) // 2 :][:1])
    return sorted(chosen)


def write_sheet(found: Findings, count: int, path: Path) -> int:
    """Draw ``count`` images into a PNG file, atomically; return how many were drawn."""
    pictures = found.pictures()
    shown = [pictures[index] for index in choose(pictures, count)]
    title = f"{Path(found.source).name}: {len(shown)} of {len(pictures)} images"
    with atomic_open(path) as file:
        draw_sheet(shown, title, found.legend()).save(file, format="PNG")
    return len(shown)


def draw_sheet(
    pictures: Sequence[Picture], title: str, legend: Sequence[tuple[str, str]]
) -> Image.Image:
    """Draw the sheet, RGB; the legend has the name and number of each class."""
    names = [name for name, _ in legend]
    tiles = list(in_threads(lambda p: draw_tile(p, names), pictures, "drawing"))
    key = _draw_legend(legend, any(picture.labels for picture in pictures))
    rows = range(0, len(tiles), COLUMNS)
    heights = [max(tile.height for tile in tiles[i : i + COLUMNS]) + CAPTION + GAP for i in rows]
    top = TITLE + key.height + GAP
    sheet = Image.new("RGB", (WIDTH, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP, 12), title, 22, WIDTH - 2 * GAP)
    sheet.paste(key, (0, TITLE))
    for number, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        row, column = divmod(number, COLUMNS)
        x, y = GAP + column * (TILE + GAP), top + sum(heights[:row])
        sheet.paste(tile, (x, y))
        _write(draw, (x, y + tile.height + 3), picture.caption, 15, TILE)
    return sheet


def _color_of(label: int, of_map: bool) -> Color:
    if of_map and label == 0:
        return FIRST_LABEL
    return COLORS[(label - of_map) % len(COLORS)]


def _write(draw: ImageDraw.ImageDraw, place: Size, text: str, size: int, width: int) -> None:
    """Write a text; leave out its middle if it is wider than ``width`` pixels."""
    font = ImageFont.load_default(size)
    short, keep = text, len(text)
    while keep > 2 and font.getlength(short) > width:
        keep -= 1
        short = f"{text[: keep // 2]}…{text[keep // 2 - keep :]}"
    draw.text(place, short, INK, font)


def _draw_legend(legend: Sequence[tuple[str, str]], of_map: bool) -> Image.Image:
    texts = [f"{name}  {number}" for name, number in legend]
    entries = [(_color_of(index, of_map), text) for index, text in enumerate(texts[:LEGEND])]
    if len(texts) > LEGEND:
        entries.append((PAPER, f"… and {len(texts) - LEGEND} more"))
    if of_map:
        entries.append((_stripes(26, 20), f"{IGNORED}: no class"))
    image = Image.new("RGB", (WIDTH, ROW * (len(entries) + 1)), PAPER)
    draw, font, x, y = ImageDraw.Draw(image), ImageFont.load_default(18), GAP, 0
    for fill, text in entries:
        width = int(60 + font.getlength(text))
        if x + width > WIDTH and x > GAP:
            x, y = GAP, y + ROW
        image.paste(fill, (x, y + 3, x + 26, y + 23))
        if fill != PAPER:
            draw.rectangle((x, y + 3, x + 25, y + 22), outline=INK)
        draw.text((x + 34, y + 2), text, INK, font)
        x += width
    return image.crop((0, 0, WIDTH, y + ROW))


def _stripes(width: int, height: int) -> Image.Image:
    """Draw the diagonal stripes that stand for no class."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.where((rows + columns) // 4 % 2, 235, 90).astype(np.uint8))


def draw_tile(picture: Picture, names: Sequence[str]) -> Image.Image:
    """Draw an image, at most ``TILE`` pixels wide and high, with its annotations."""
    width, height = picture.size
    scale = TILE / max(width, height)
    image = Image.new("RGB", (max(1, round(width * scale)), max(1, round(height * scale))), PAPER)
    if picture.image is not None:
        with suppress(UserError):  # if the file has changed since the check, the tile stays white
            image = read_image(picture.image, picture.size).resize(image.size)
    canvas = np.asarray(image, np.float32).copy()
    if picture.labels:
        return _draw_labels(canvas, picture, names)
    return _draw_objects(canvas, picture, names, scale)


def _draw_objects(canvas: np.ndarray, picture: Picture, names, scale: float) -> Image.Image:
    objects = sorted(picture.objects, key=lambda o: -o[1][2] * o[1][3])  # small objects on top
    height, width, _ = canvas.shape
    for label, _, segmentation in objects:
        if segmentation:
            mask = pycocotools.mask.decode(to_rle(segmentation, *picture.size[::-1]))
            mask = np.asarray(Image.fromarray(mask * np.uint8(255)).resize((width, height))) >= 128
            _paint(canvas, mask, _color_of(label, False))
    image = _to_image(canvas)
    names_to_write, draw = [], ImageDraw.Draw(image)
    for label, (x, y, w, h), _ in objects:
        corners = np.array([[x, y], [x + w, y + h]]) * scale - [[0, 0], [1, 1]]
        x1, y1, x2, y2 = corners.clip(0, (width - 1, height - 1)).ravel().tolist()
        color = _color_of(label, False)
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color)
        outside, inside = [(x1, y1 - 16), (x1, y2 + 1)], [(x1 + 2, y1 + 2), (x1 + 2, y2 - 17)]
        spots = outside + inside if y2 - y1 < 5 * NAME else inside + outside
        names_to_write.append((names[label], spots, color))
    return _write_names(image, names_to_write)


def _draw_labels(canvas: np.ndarray, picture: Picture, names: Sequence[str]) -> Image.Image:
    size = canvas.shape[1::-1]
    labels = Image.fromarray(read_label_map(picture.labels, picture.first).numpy())
    labels = np.asarray(labels.resize(size, Image.Resampling.NEAREST))
    gray = canvas.mean(2, keepdims=True)
    names_to_write = []
    for label in np.unique(labels).tolist():
        mask, color = labels == label, _color_of(label, True)
        if label == IGNORED:
            stripes = np.asarray(_stripes(*size), np.float32)[..., None]
            canvas[mask] = (0.4 * canvas + 0.6 * stripes)[mask]
        elif label == 0:  # the image without its colors
            canvas[mask] = (0.6 * gray + 60)[mask]
        else:
            _paint(canvas, mask, color)
        if label < len(names):
            names_to_write.append((names[label], [_find_spot(mask)], color))
    return _write_names(_to_image(canvas), names_to_write)


def _to_image(canvas: np.ndarray) -> Image.Image:
    return Image.fromarray(canvas.round().astype(np.uint8))


def _paint(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Lay a color over a mask, and draw the edge of the mask in this color."""
    canvas[mask] += FILL * (np.float32(color) - canvas[mask])
    canvas[mask & ~_erode(_erode(mask))] = color


def _erode(mask: np.ndarray) -> np.ndarray:
    """Return the pixels with four neighbors in the mask; beyond the border is no mask."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _find_spot(mask: np.ndarray) -> tuple[float, float]:
    """Return where to write the name of a region: around a point deep inside it."""
    step = max(1, max(mask.shape) // 64)
    if not mask[::step, ::step].any():
        step = 1
    small = mask[::step, ::step]
    while (deeper := _erode(small)).any():
        small = deeper
    ys, xs = np.nonzero(small)
    middle = len(ys) // 2
    return xs[middle] * step - 20.0, ys[middle] * step - 7.0


def _write_names(image: Image.Image, names: list[tuple[str, list, Color]]) -> Image.Image:
    """Write each name on its color at its first free spot; skip names without a free spot."""
    draw, font, taken = ImageDraw.Draw(image), ImageFont.load_default(13), []
    for text, spots, color in names:
        width = font.getlength(text) + 6
        red, green, blue = color
        ink = DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 105 else PAPER
        for x, y in spots:
            x = min(max(x, 0), max(image.width - width, 0))
            y = min(max(y, 0), max(image.height - NAME, 0))
            box = (x, y, x + width, y + NAME)
            if all(box[0] > o[2] or box[2] < o[0] or box[1] > o[3] or box[3] < o[1] for o in taken):
                taken.append(box)
                draw.rectangle(box, fill=color)
                draw.text((x + 3, y), text, ink, font)
                break
    return image
