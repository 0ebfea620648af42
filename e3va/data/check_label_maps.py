"""Check label maps and their images as a whole, so that no problem hides another."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from ..utils.paths import find_images
from .check_instances import note_decoded
from .images import decode_image, in_threads
from .label_maps import IGNORED, MOST_CLASSES, LabelMapFault, check_folders, load_labels
from .problems import REFUSED, Findings, Problems


@dataclass(frozen=True)
class CheckedLabelMap:
    """A usable label map and its image.

    Attributes:
        image: path of the image; None where only label maps are checked.
        labels: path of the label map.
        size: width and height in pixels.
        classes: labels that occur.
    """

    image: str | None
    labels: str
    size: tuple[int, int]
    classes: frozenset[int]


@dataclass
class LabelMapFindings(Findings):
    """Findings in label maps and their images.

    Attributes:
        first: label of class 0 in the files; smaller labels stand for no class.
        names: class names, that of class 0 first.
        named: whether the user named the classes.
        usable: label maps that can be used.
        pixels: number of pixels with each class, int64 [256], over all maps that can be read.
        images: number of maps with each class, int64 [256].
    """

    first: int = 0
    names: list[str] = field(default_factory=list)
    named: bool = False
    usable: list[CheckedLabelMap] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))


def check_label_maps(
    folder: str | Path,
    images: str | Path | None,
    names: tuple[str, ...] = (),
    *,
    first: int = 0,
    classes: int | None = None,
) -> LabelMapFindings:
    """Check label maps and decode their images; ``a.jpg`` has the label map ``a.png``.

    Args:
        folder: folder of label maps.
        images: folder of images; None to check only the label maps.
        names: class names, that of class 0 first.
        first: label of class 0 in the files.
        classes: number of classes, where they have no names.

    Raises:
        UserError: a folder does not exist or has no such files, or there are too many names.
    """
    if len(names) > MOST_CLASSES:
        raise UserError(f"{len(names)} class names (--classes): expected {MOST_CLASSES} at most")
    found = LabelMapFindings(str(folder), None if images is None else str(images), first=first)
    pairs = _pair(found)
    found.listed = len(pairs)
    limit = len(names) or classes or MOST_CLASSES
    results = in_threads(lambda pair: _check(*pair, first, limit), pairs, "checking label maps")
    for (image, labels), (size, counts, problems) in zip(pairs, results, strict=True):
        found.problems += problems
        if counts is None:
            continue
        found.pixels += counts
        found.images += counts > 0
        if not problems.of_severity(REFUSED):
            used = frozenset(np.flatnonzero(counts[:IGNORED]).tolist())
            found.usable.append(CheckedLabelMap(image, labels, size, used))
    found.named = bool(names)
    used = np.flatnonzero(found.pixels[:IGNORED])
    count = classes or used.max(initial=-1) + 1
    found.names = list(names) or [f"class {index}" for index in range(count)]
    if not used.size:
        found.problems.note("nothing", folder, None, "no pixel has a class")
    for label, name in enumerate(found.names):
        if not found.pixels[label]:
            found.problems.note("unused", folder, label, f"no pixel of the class {name!r}")
    return found


def _pair(found: LabelMapFindings) -> list[tuple[str | None, str | None]]:
    """Return images with their label maps; one of the two may be missing."""
    maps = {path.stem: str(path) for path in sorted(Path(found.source).glob("*.png"))}
    if found.root is not None:
        check_folders(found.root, found.source)
    if not maps:
        raise UserError(f"{found.source} has no label maps: expected PNG files")
    if found.root is None:
        return [(None, path) for path in maps.values()]
    images = defaultdict(list)
    for path in find_images([found.root]):
        images[path.stem].append(path)
    for paths in images.values():
        if len(paths) > 1:
            text = f"has the same label map as {', '.join(path.name for path in paths[:-1])}"
            found.problems.note("ambiguous", paths[-1], None, text)
    for stem in sorted(maps.keys() - images.keys()):
        found.problems.note("no_image", maps[stem], None, f"no image {stem}.* in {found.root}")
    for stem in sorted(images.keys() - maps.keys()):
        wanted = Path(found.source) / f"{stem}.png"
        for path in images[stem]:
            found.problems.note("no_map", path, None, f"{wanted} does not exist")
    return [(str(path), maps.get(stem)) for stem, paths in images.items() for path in paths]


def _check(
    image: str | None, path: str | None, first: int, limit: int
) -> tuple[tuple[int, int] | None, np.ndarray | None, Problems]:
    """Return the upright size of an image, the pixels of each class in its map, and problems."""
    problems, counts, size, map_size = Problems(), None, None, None
    if path is not None:
        try:
            labels = load_labels(path, first)
        except LabelMapFault as fault:
            problems.note(fault.kind, path, None, str(fault))
        else:
            map_size = size = labels.shape[::-1]
            counts = np.bincount(labels.ravel(), minlength=256)
            _check_classes(counts, path, first, limit, problems)
    if image is not None:
        decoded = decode_image(image)
        size = decoded.size
        note_decoded(decoded, image, problems)
        if None not in (size, map_size) and size != map_size:
            text = f"the map is {map_size[0]}×{map_size[1]}, its image {size[0]}×{size[1]}"
            problems.note("map_size", path, None, text)
    return size, counts, problems


def _check_classes(counts: np.ndarray, path: str, first: int, limit: int, problems: Problems):
    used = np.flatnonzero(counts[:IGNORED])
    if not used.size:
        problems.note("ignored", path, None, f"every pixel is {IGNORED}")
    outside = [str(label + first) for label in used[used >= limit]]
    if outside:
        shown = ", ".join(outside[:8]) + (f" … {outside[-1]}" if len(outside) > 8 else "")
        text = f"has the labels {shown}: the classes are {first} to {limit - 1 + first}"
        problems.note("label", path, None, text)
