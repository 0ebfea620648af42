"""Label maps and their images, checked whole."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.paths import IMAGE_SUFFIXES
from .check import note_turned
from .images import BROKEN, Seen, brief, in_threads, look_at
from .label_maps import IGNORED
from .problems import Problems


@dataclass(frozen=True)
class Pair:
    """An image and its label map; ``image`` is None where there are maps alone."""

    image: str | None
    labels: str | None


@dataclass
class LabelMaps:
    """Checked label maps.

    Attributes:
        source, root: folders of the maps and of their images (None without images).
        names: by label.
        named: whether the user gave the names.
        shift: how much less a label is than its pixels: 1 where 0 stands for "no class".
        pairs: those that can be used, with the image's width and height.
        present: labels in each usable pair.
        pixels, images: int64 [256], how many have each label, of the maps that could be read.
        problems: all that was found.
    """

    source: str
    root: str | None
    names: list[str] = field(default_factory=list)
    named: bool = False
    shift: int = 0
    listed: int = 0
    pairs: list[tuple[Pair, tuple[int, int]]] = field(default_factory=list)
    present: list[frozenset[int]] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    problems: Problems = field(default_factory=Problems)


def check_labels(
    folder: str | Path,
    images: str | Path | None,
    names: tuple[str, ...] = (),
    *,
    shift: int = 0,
    classes: int | None = None,
) -> LabelMaps:
    """Check label maps and open their images: for ``a.jpg`` in one folder ``a.png`` in the other.

    Args:
        folder: of label maps.
        images: of images; None to look at the maps alone.
        names: class names, label 0 first.
        shift: see :class:`LabelMaps`.
        classes: how many there are, where they have no names.

    Raises:
        UserError: a folder has no such files.
    """
    found = LabelMaps(str(folder), None if images is None else str(images), shift=shift)
    found.named = bool(names)
    if images is not None and Path(images).resolve() == Path(folder).resolve():
        raise UserError(f"images and label maps are both in {folder}: expected a folder for each")
    pairs = _pair(found)
    found.listed = len(pairs)
    limit = len(names) or classes or IGNORED
    seen = in_threads(lambda pair: _look(pair, shift), pairs, "checking label maps")
    for pair, (image, counts, problems) in zip(pairs, seen, strict=True):
        found.problems += problems
        if counts is None:
            continue
        found.pixels += counts
        found.images += counts > 0
        used = np.flatnonzero(counts[:IGNORED])
        if not used.size:
            found.problems.note("ignored", pair.labels, None, f"every pixel is {IGNORED}")
        outside = used[used >= limit]
        if outside.size:
            last = limit - 1 + shift
            text = f"has the labels {_some(outside + shift)}: the classes are {shift} to {last}"
            found.problems.note("label", pair.labels, None, text)
        elif image.size is not None and not problems.count("refused"):
            found.pairs.append((pair, image.size))
            found.present.append(frozenset(used.tolist()))
    _name(found, names, classes)
    return found


def _some(values: np.ndarray) -> str:
    shown = ", ".join(map(str, values[:8].tolist()))
    return shown + (f" … {values[-1]}" if len(values) > 8 else "")


def _pair(found: LabelMaps) -> list[Pair]:
    maps = _files(found.source, {".png"}, "label maps (PNG)")
    if found.root is None:
        return [Pair(None, str(path)) for path in maps]
    by_stem = {path.stem: str(path) for path in maps}
    images = _files(found.root, IMAGE_SUFFIXES, "images")
    of_stem = defaultdict(list)
    for path in images:
        of_stem[path.stem].append(path)
    for paths in of_stem.values():
        if len(paths) > 1:
            text = f"shares its map with {', '.join(path.name for path in paths[:-1])}"
            found.problems.note("ambiguous", paths[-1], None, text)
    for stem, path in by_stem.items():
        if stem not in of_stem:
            found.problems.note("no_image", path, None, f"no image {stem}.* in {found.root}")
    pairs = []
    for path in images:
        if path.stem not in by_stem:
            wanted = Path(found.source) / f"{path.stem}.png"
            found.problems.note("no_map", path, None, f"there is no {wanted}")
        pairs.append(Pair(str(path), by_stem.get(path.stem)))
    return pairs


def _files(folder: str, suffixes: set[str], what: str) -> list[Path]:
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {folder}: expected a folder of {what}")
    # Training looks for ".png" as it is written here; of images any case will do.
    files = sorted(
        p
        for p in root.iterdir()
        if (p.suffix if suffixes == {".png"} else p.suffix.lower()) in suffixes
    )
    if not files:
        raise UserError(f"{folder} has no {what}: expected {', '.join(sorted(suffixes))}")
    return files


def _look(pair: Pair, shift: int) -> tuple[Seen, np.ndarray | None, Problems]:
    """What the image is, the map's pixels of each label [256], and what is wrong with either."""
    problems, counts, labels = Problems(), None, None
    if pair.labels:
        labels, size = _open_map(pair.labels, problems)
        if labels is not None:
            labels[labels != IGNORED] -= np.uint8(shift)
            counts = np.bincount(labels.ravel(), minlength=256)
    if pair.image is None:
        image = Seen(size if labels is not None else None)
        return image, counts, problems
    image = look_at(pair.image)
    if image.size is None:
        problems.note("undecodable", pair.image, None, image.fault)
    elif image.orientation != 1:
        note_turned(pair.image, None, image, problems)
    if image.size and labels is not None and size != image.size:
        text = f"is {size[0]}×{size[1]}, its image {image.size[0]}×{image.size[1]}"
        problems.note("map_size", pair.labels, None, text)
    return image, counts, problems


def _open_map(path: str, problems: Problems) -> tuple[np.ndarray | None, tuple[int, int] | None]:
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                problems.note("map_mode", path, None, f"has the mode {image.mode}")
                return None, None
            return np.array(image), image.size
    except BROKEN as error:
        problems.note("undecodable", path, None, brief(error))
        return None, None


def _name(found: LabelMaps, names: tuple[str, ...], classes: int | None) -> None:
    used = np.flatnonzero(found.pixels[:IGNORED])
    count = classes or (int(used.max()) + 1 if used.size else 0)
    found.names = list(names) or [f"class {index}" for index in range(count)]
    if not used.size:
        found.problems.note("nothing", found.source, None, "no pixel has a class")
    for label, name in enumerate(found.names):
        if not found.pixels[label]:
            found.problems.note("unused", found.source, label, f"no pixel of the class {name!r}")
