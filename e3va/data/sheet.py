"""A contact sheet: some images of every class, with what is annotated drawn over them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..utils.atomic import rename_atomically
from ..utils.colors import COLOURS
from .check import Instances
from .images import BROKEN, in_threads
from .label_maps import IGNORED, read_label_map
from .labels import LabelMaps, Pair
from .masks import decode, to_rle

WIDTH = 1600  # of the sheet, pixels
COLUMNS, GAP = 3, 16
CAPTION, TITLE, ROW = 24, 44, 30  # heights of a caption, the title, a line of the legend
NAME = 15  # height of a class name beside an object
TILE = (WIDTH - GAP * (COLUMNS + 1)) // COLUMNS
LEGEND = 60  # classes in the legend at most

# Names are written beside what they belong to, since colours repeat where classes are many.
FIRST_LABEL = (150, 150, 150)  # of label 0, which is the background in most label maps
PAPER, INK, DARK = (255, 255, 255), (20, 20, 20), (0, 0, 0)
FILL = 0.4  # how much of a mask's colour covers the image


@dataclass(frozen=True)
class Picture:
    """What a tile shows.

    Attributes:
        image: the file; None for a label map alone.
        size: width and height in pixels.
        caption: a line below it.
        classes: class indices that are in it.
        objects: class index, box (x, y, width, height) and segmentation or None, of each object.
        labels, shift: see :class:`e3va.data.labels.LabelMaps`; None for objects.
    """

    image: str | None
    size: tuple[int, int]
    caption: str
    classes: frozenset[int]
    objects: list[tuple[int, list[float], object]] = field(default_factory=list)
    labels: str | None = None
    shift: int = 0


def pictures_of(found: Instances | LabelMaps) -> list[Picture]:
    """All usable images as what their tiles would show."""
    if isinstance(found, LabelMaps):
        return [
            _label_picture(found, *known) for known in zip(found.pairs, found.present, strict=True)
        ]
    index, result = found.class_index, []
    for image in found.images:
        objects = [
            (index[a["category_id"]], a["bbox"], a.get("segmentation"))
            for a in found.annotations[image["id"]]
        ]
        count = f"{len(objects)} object{'s' * (len(objects) != 1)}" if objects else "no object"
        caption = f"{image['file_name']} (id {image['id']}): {count}"
        classes = frozenset(label for label, _, _ in objects)
        size = (image["width"], image["height"])
        result.append(Picture(image["path"], size, caption, classes, objects))
    return result


def _label_picture(
    found: LabelMaps, sized: tuple[Pair, tuple[int, int]], present: frozenset[int]
) -> Picture:
    pair, size = sized
    caption = f"{Path(pair.image or pair.labels).name}: {len(present)} classes"
    return Picture(pair.image, size, caption, present, labels=pair.labels, shift=found.shift)


def choose(pictures: Sequence[Picture], count: int) -> list[int]:
    """Indices of ``count`` pictures, spread over the classes (the rarest first) and over the data.

    Classes take turns; each takes the middle one of the pictures that have it and are not taken.
    """
    having: dict[int, list[int]] = {}
    for index, picture in enumerate(pictures):
        for label in picture.classes:
            having.setdefault(label, []).append(index)
    turns = sorted(having.values(), key=lambda own: (len(own), own))
    chosen: set[int] = set()
    for own in (*turns * count, range(len(pictures))):
        left = [index for index in own if index not in chosen]
        if left and len(chosen) < count:
            chosen.add(left[len(left) // 2])
    left = [index for index in range(len(pictures)) if index not in chosen]
    chosen.update(left[: max(0, count - len(chosen))])
    return sorted(chosen)


def draw_sheet(pictures: Sequence[Picture], title: str, legend: Sequence[str]) -> Image.Image:
    """The sheet, RGB and ``WIDTH`` pixels wide.

    Args:
        pictures: those to show, see :func:`choose`.
        title: the line at its top.
        legend: the classes' names with what is to be said of them, by class index.
    """
    labels = any(picture.labels for picture in pictures)
    names = [text.split("\t")[0] for text in legend]
    tiles = list(in_threads(lambda p: _tile(p, names), pictures, "drawing"))
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.height for tile in row) + CAPTION + GAP for row in rows]
    key = _legend(legend, labels)
    sheet = Image.new("RGB", (WIDTH, TITLE + key.height + GAP + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 12), _fit(title, 22, WIDTH - 2 * GAP), INK, _font(22))
    sheet.paste(key, (0, TITLE))
    top = TITLE + key.height + GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, tile in enumerate(row):
            left = GAP + column * (TILE + GAP)
            sheet.paste(tile, (left, top))
            caption = _fit(pictures[number * COLUMNS + column].caption, 15, TILE)
            draw.text((left, top + tile.height + 3), caption, INK, _font(15))
        top += height
    return sheet


def write_sheet(found: Instances | LabelMaps, count: int, path: Path) -> int:
    """Draw ``count`` images of checked data into a PNG file, atomically; returns how many."""
    pictures = pictures_of(found)
    shown = [pictures[index] for index in choose(pictures, count)]
    if isinstance(found, LabelMaps):
        total = max(int(found.pixels.sum()), 1)
        numbers = zip(found.names, found.pixels, strict=False)
        legend = [f"{name}\t{100 * pixels / total:.1f}%" for name, pixels in numbers]
    else:
        legend = [f"{row.name}\t{len(row.sizes)}" for row in found.classes]
    title = f"{Path(found.source).name}: {len(shown)} of {len(pictures)} images"
    sheet = draw_sheet(shown, title, legend)
    with rename_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
    return len(shown)


def colour_of(label: int, of_map: bool) -> tuple[int, int, int]:
    """Of a class index; label 0 of a label map is grey."""
    if of_map:
        return COLOURS[(label - 1) % len(COLOURS)] if label else FIRST_LABEL
    return COLOURS[label % len(COLOURS)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _fit(text: str, size: int, width: float) -> str:
    """Shorten a text in its middle until it fits into ``width`` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}") > width:
        keep -= 1
    return f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"


def _legend(legend: Sequence[str], labels: bool) -> Image.Image:
    entries = [
        (colour_of(index, labels), text.replace("\t", "  ")) for index, text in enumerate(legend)
    ][:LEGEND]
    if len(legend) > LEGEND:
        entries.append((PAPER, f"… and {len(legend) - LEGEND} more"))
    if labels:
        entries.append((None, f"{IGNORED}: no class"))
    font, places, x, y = _font(18), [], GAP, 0
    for colour, text in entries:
        width = 34 + font.getlength(text) + 26
        if x + width > WIDTH and x > GAP:
            x, y = GAP, y + ROW
        places.append((x, y, colour, text))
        x += int(width)
    image = Image.new("RGB", (WIDTH, y + ROW), PAPER)
    draw = ImageDraw.Draw(image)
    for x, y, colour, text in places:
        swatch = Image.new("RGB", (26, 20), colour) if colour else _stripes(26, 20)
        image.paste(swatch, (x, y + 3))
        if colour != PAPER:
            draw.rectangle((x, y + 3, x + 25, y + 22), outline=INK)
        draw.text((x + 34, y + 2), text, INK, font)
    return image


def _stripes(width: int, height: int) -> Image.Image:
    """Diagonal stripes, which stand for no class."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.where((rows + columns) // 4 % 2, 235, 90).astype(np.uint8))


def _tile(picture: Picture, names: Sequence[str]) -> Image.Image:
    """The image at the width of a tile, but not higher than wide, with what is annotated."""
    width, height = picture.size
    scale = min(TILE / width, TILE / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = _open(picture, size)
    if picture.labels:
        return _draw_labels(image, picture, names)
    return _draw_objects(image, picture, names, scale)


def _open(picture: Picture, size: tuple[int, int]) -> Image.Image:
    if picture.image is None:
        return Image.new("RGB", size, PAPER)
    try:
        with Image.open(picture.image) as image:
            return ImageOps.exif_transpose(image).convert("RGB").resize(size)
    except BROKEN:  # it has changed since it was checked
        return Image.new("RGB", size, PAPER)


def _draw_objects(image: Image.Image, picture: Picture, names, scale: float) -> Image.Image:
    order = sorted(picture.objects, key=lambda o: -o[1][2] * o[1][3])  # small ones on top
    canvas = np.asarray(image, np.float32).copy()
    for label, _, segmentation in order:
        if segmentation:
            _paint(canvas, _mask(segmentation, picture.size, image.size), colour_of(label, False))
    image = Image.fromarray(canvas.round().astype(np.uint8))
    draw, taken = ImageDraw.Draw(image), []
    boxes = []
    for label, (x, y, w, h), _ in order:
        box = [x * scale, y * scale, (x + w) * scale - 1, (y + h) * scale - 1]
        box[0::2] = np.clip(box[0::2], 0, image.width - 1).tolist()
        box[1::2] = np.clip(box[1::2], 0, image.height - 1).tolist()
        boxes.append((label, box))
        _rectangle(draw, box, colour_of(label, False))
    for label, box in boxes:
        above, below = (box[0], box[1] - 16), (box[0], box[3] + 1)
        inside = [(box[0] + 2, box[1] + 2), (box[0] + 2, box[3] - 17)]
        small = box[3] - box[1] < 5 * NAME
        spots = [above, below, *inside] if small else [*inside, above, below]
        _write(draw, names[label], spots, colour_of(label, False), taken, image.size)
    return image


def _mask(segmentation, size: tuple[int, int], shown: tuple[int, int]) -> np.ndarray:
    """At the size of the tile, [h, w] bool."""
    pixels = decode(to_rle(segmentation, size[1], size[0]))
    return np.asarray(Image.fromarray(pixels * np.uint8(255)).resize(shown)) >= 128


def _paint(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, ...]) -> None:
    """Cover a mask with its colour, and its edge with a line of it."""
    canvas[mask] += FILL * (np.float32(colour) - canvas[mask])
    canvas[mask & ~_eroded(_eroded(mask))] = colour


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels all of whose four neighbours belong to the mask; none beyond the border does."""
    wide = np.pad(mask, 1)
    return mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]


def _rectangle(draw: ImageDraw.ImageDraw, box: list[float], colour: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = box[0], box[1], max(box[2], box[0]), max(box[3], box[1])
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=1)


def _write(draw, text: str, spots, colour, taken: list, size: tuple[int, int]) -> None:
    """Write a name on its colour at the first spot that is free; none is written where none is."""
    font = _font(13)
    width, height = font.getlength(text) + 6, NAME
    for x, y in spots:
        x = min(max(x, 0), max(size[0] - width, 0))
        y = min(max(y, 0), max(size[1] - height, 0))
        box = (x, y, x + width, y + height)
        if all(box[0] > o[2] or box[2] < o[0] or box[1] > o[3] or box[3] < o[1] for o in taken):
            taken.append(box)
            draw.rectangle(box, fill=colour)
            draw.text((x + 3, y), text, DARK if _is_bright(colour) else PAPER, font)
            return


def _is_bright(colour: tuple[int, ...]) -> bool:
    """Whether black is read better on a colour than white, by WCAG's relative luminance."""
    red, green, blue = (
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179


def _draw_labels(image: Image.Image, picture: Picture, names) -> Image.Image:
    labels = Image.fromarray(read_label_map(picture.labels, picture.shift).numpy())
    labels = np.asarray(labels.resize(image.size, Image.Resampling.NEAREST))
    canvas = np.asarray(image, np.float32).copy()
    present = [int(label) for label in np.unique(labels)]
    for label in present:
        if label == IGNORED:
            stripes = np.asarray(_stripes(*image.size), np.float32)[..., None]
            canvas = np.where((labels == IGNORED)[..., None], 0.4 * canvas + 0.6 * stripes, canvas)
        elif label == 0:
            grey = canvas.mean(2, keepdims=True)  # the picture itself, without colour
            canvas = np.where((labels == 0)[..., None], 0.6 * grey + 60, canvas)
        else:
            _paint(canvas, labels == label, colour_of(label, True))
    image = Image.fromarray(canvas.round().astype(np.uint8))
    draw, taken = ImageDraw.Draw(image), []
    for label in present:
        if label < len(names):
            spots = [_inside(labels == label)]
            _write(draw, names[label], spots, colour_of(label, True), taken, image.size)
    return image


def _inside(mask: np.ndarray) -> tuple[float, float]:
    """Where a name of a region may stand: left of and above a point that is deep inside it."""
    step = max(1, max(mask.shape) // 64)
    small = mask[::step, ::step]
    small = small if small.any() else mask
    step = step if small is not mask else 1
    while (deeper := _eroded(small)).any():
        small = deeper
    ys, xs = np.nonzero(small)
    middle = len(ys) // 2
    return xs[middle] * step - 20.0, ys[middle] * step - 7.0
