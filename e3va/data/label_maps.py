"""Label maps: PNG files with a class number in every pixel, one for each image.

The label map of ``images/a.jpg`` is ``labels/a.png``, of the size of the upright or of the stored
picture, see :mod:`e3va.data.images`. Label k is class k, and 255 stands for no class. In a PNG file
with a palette, the indices are the labels, not the colors. Files of one or 16 bits are read as they
are, and colors as labels if their red, green and blue are equal.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..utils.counts import counted
from ..utils.errors import UserError, brief
from ..utils.paths import IMAGE_SUFFIXES, LABEL_MAP_SUFFIXES, find_images, list_files
from .images import BROKEN, check_header
from .problems import count_line

IGNORED = 255
MOST_CLASSES = IGNORED  # labels have 8 bits
# Pillow's modes that can hold labels, besides those of more than 8 bits.
MODES = ("L", "P", "1", "LA", "RGB", "RGBA")
BLACK_AND_WHITE = {0, IGNORED}  # the labels of a mask that was drawn in black and white
TWO_LABELS = (
    f"the only labels are 0 and {IGNORED}, and {IGNORED} stands for no class: write 1 for the "
    "second class"
)


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label map: files that exist and have the same size."""

    image: Path
    labels: Path
    width: int
    height: int


class LabelledImages(list[LabelledImage]):
    """Images with label maps; ``counts`` has the number of problems by kind."""

    def __init__(self, pairs: Iterable[LabelledImage] = (), counts: Counter | None = None):
        super().__init__(pairs)
        self.counts = counts or Counter()


class LabelMapFault(UserError):
    """The reason why a label map cannot be used, as a kind of e3va.data.problems and a text."""

    def __init__(self, kind: str, path: str | os.PathLike, text: str):
        super().__init__(f"label map {path} {text}; replace it, or remove its image")
        self.kind, self.text = kind, text


def pair_label_maps(
    images: str | os.PathLike, labels: str | os.PathLike, skip_missing: bool = False
) -> LabelledImages:
    """Find the label map of every image in a folder; only the files' headers are read.

    Subfolders are not read. Label maps without an image are skipped and counted, and with
    ``skip_missing`` also images without a label map.

    Raises:
        UserError: a folder does not exist or has no images, or both folders are the same; an image
            has no label map; two label maps have the same name, as ``a.png`` and ``a.PNG``; a file
            cannot be read; a label map has another size than its image, or colors.
    """
    root, folder = check_folders(images, labels)
    maps, found, counts = find_label_maps(folder), find_images([str(root)]), Counter()
    for first, *others in maps.values():
        if others:
            raise UserError(
                f"label maps {first} and {others[0].name} have the same name: keep one of the two"
            )
    if skip_missing:
        listed = len(found)
        found = [path for path in found if path.stem in maps]
        counts["no_map_skipped"] = listed - len(found)
        if not found:
            raise UserError(f"no image in {root} has a label map in {folder}")
    stems = {path.stem for path in found}
    counts["no_image"] = len(maps.keys() - stems)
    counts["ambiguous"] = len(found) - len(stems)
    counts["hidden"] = len(find_hidden(root, folder))
    pairs = []
    for path in found:
        own = maps.get(path.stem, [folder / f"{path.stem}.png"])
        pair, is_turned = _pair(path, own[0])
        pairs.append(pair)
        counts["unturned"] += not is_turned
    return LabelledImages(pairs, counts)


def find_label_maps(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Return the label maps of a folder by their names without the suffix; each has one usually."""
    maps: dict[str, list[Path]] = {}
    for path in list_files(folder, LABEL_MAP_SUFFIXES):
        maps.setdefault(path.stem, []).append(path)
    return maps


def find_hidden(root: str | os.PathLike | None, folder: str | os.PathLike) -> list[Path]:
    """Return images and label maps that are skipped since their names begin with a dot."""
    images = [] if root is None else list_files(root, IMAGE_SUFFIXES, hidden=True)
    return images + list_files(folder, LABEL_MAP_SUFFIXES, hidden=True)


def check_folders(*folders: str | os.PathLike) -> list[Path]:
    """Return the folders as paths; raise UserError if one does not exist or both are the same."""
    paths = [Path(folder).expanduser() for folder in folders]
    for path, content in zip(paths, ("images", "label maps (PNG files)"), strict=True):
        if not path.is_dir():
            raise UserError(f"no folder {path}: expected a folder of {content}")
    if paths[0].resolve() == paths[1].resolve():
        raise UserError(
            f"images and label maps are both in {paths[0]}: expected two folders, where a.jpg in "
            "one has the label map a.png in the other"
        )
    return paths


def _pair(image: Path, labels: Path) -> tuple[LabelledImage, bool]:
    """Return an image with its label map, and whether the map fits the upright picture."""
    if not labels.is_file():
        raise UserError(
            f"image {image} has no label map {labels}: expected a PNG file of the same name with a "
            "class number in every pixel; --skip-missing (data.skip_missing=true with Detectron2) "
            "leaves out such images"
        )
    upright, stored = check_header(image)
    with _open(labels) as file:
        map_size = file.size
    if map_size not in (upright, stored):
        raise UserError(
            f"label map {labels} is {map_size[0]}×{map_size[1]}, its image {image} is "
            f"{upright[0]}×{upright[1]}: expected the same size"
        )
    return LabelledImage(image, labels, *map_size), map_size == upright


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            if file.mode not in MODES and not file.mode.startswith("I"):
                raise _no_labels(path, file.mode)
            yield file
    except BROKEN as error:
        raise LabelMapFault("undecodable", path, f"cannot be read: {brief(error)}") from None


def _no_labels(path: str | os.PathLike, mode: str) -> LabelMapFault:
    text = (
        f"has Pillow's mode {mode}: expected one channel of 8 bits (L) or a palette (P), with a "
        "class number in every pixel instead of a color"
    )
    return LabelMapFault("map_mode", path, text)


def read_labels(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """Read a label map as it is, [H, W] uint8; raise LabelMapFault if it cannot be used.

    Also return Pillow's mode of the file if it was converted, and "" otherwise.
    """
    with _open(path) as file:
        labels, mode = np.array(file), file.mode
    if mode in ("L", "P"):
        return labels, ""
    if labels.ndim == 3:  # colors, and an alpha channel in LA and RGBA
        alpha = mode.endswith("A")
        colors = labels[..., : labels.shape[-1] - alpha]
        if (colors != colors[..., :1]).any() or (alpha and (labels[..., -1] != 255).any()):
            raise _no_labels(path, mode)
        labels = colors[..., 0]
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high <= IGNORED:
        text = f"has labels from {low} to {high}: expected 0 to {IGNORED}"
        raise LabelMapFault("map_mode", path, text)
    return labels.astype(np.uint8), mode


def shift_labels(labels: np.ndarray, first: int) -> np.ndarray:
    """Return labels that start at ``first`` as classes; lower ones become :data:`IGNORED`."""
    if not first:
        return labels
    ignored = (labels < first) | (labels == IGNORED)
    return np.where(ignored, np.uint8(IGNORED), labels - np.uint8(first))


def read_label_map(path: str | os.PathLike, first: int = 0, classes: int = MOST_CLASSES) -> Tensor:
    """Read a label map as classes, [H, W] uint8: 0 to ``classes`` − 1, and :data:`IGNORED`.

    ``first`` is the label of class 0 in the file. Smaller labels become :data:`IGNORED` (in ADE20K,
    label 0 is "other"), and 255 stays :data:`IGNORED`.

    Raises:
        UserError: the file cannot be read, or has a label that stands for no class.
    """
    try:
        labels = shift_labels(read_labels(path)[0], first)
    except LabelMapFault as fault:
        # A worker process of torch can send an exception only if its text rebuilds it.
        raise UserError(str(fault)) from None
    largest = int(labels.max(initial=0, where=labels != IGNORED))
    if largest >= classes:
        raise UserError(
            f"label map {path} has the label {largest + first}, but the classes are "
            f"{first} to {classes + first - 1}; {IGNORED} stands for no class"
        )
    return torch.from_numpy(labels)


def largest_label(path: str | os.PathLike) -> int:
    """Return the largest label of a class, or −1; a file is read again only if it has changed."""
    return max((label for label in labels_of(path)[0] if label != IGNORED), default=-1)


def labels_of(path: str | os.PathLike) -> tuple[bytes, bool]:
    """Return the labels that occur in a label map, and whether it has another form than 8 bits.

    A file is read again only if it has changed.
    """
    status = os.stat(path)
    return _labels_of(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1 << 16)
def _labels_of(path: str, _changed: int, _size: int) -> tuple[bytes, bool]:
    labels, mode = read_labels(path)
    return np.unique(labels).tobytes(), bool(mode)


def class_names(text: str | None) -> tuple[str, ...]:
    """Return the class names in the text of ``--classes``, such as "background, road, car"."""
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    check_names(names, "--classes")
    return names


def check_names(names: Sequence[str], option: str) -> None:
    """Check the class names of an option; raise UserError for equal ones, or for too many."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{option} has {', '.join(twice)} twice: expected different names")
    if len(names) > MOST_CLASSES:
        raise UserError(
            f"{option} has {len(names)} names: label maps of 8 bits have {MOST_CLASSES} at most"
        )


def check_labels(
    pairs: Iterable[LabelledImage], names: Sequence[str], training: bool = True
) -> None:
    """Check that every label is a class, and that the label maps are not drawn as 0 and 255.

    Raises:
        UserError: a label stands for no class, or every label is 255; in data for ``training``, the
            only labels are 0 and 255, so that a model would learn that everything is class 0.
    """
    used: set[int] = set()
    for pair in pairs:
        used.update(labels_of(pair.labels)[0])
        largest = largest_label(pair.labels)
        if largest >= len(names):
            raise UserError(
                f"label map {pair.labels} has the label {largest}, but the classes are 0 to "
                f"{len(names) - 1} ({', '.join(names)}); {IGNORED} stands for no class"
            )
    folder = pair.labels.parent
    if used == {IGNORED}:
        raise UserError(
            f"every pixel of the label maps in {folder} is {IGNORED}, which stands "
            "for no class: expected a class number in every pixel"
        )
    if training and used == BLACK_AND_WHITE:
        raise UserError(f"label maps in {folder}: {TWO_LABELS}")


def summarize_labels(
    source: str, pairs: Sequence[LabelledImage], names: Sequence[str], counts: Mapping[str, int]
) -> str:
    """Return one line: numbers of images and classes, and all that is converted or left out.

    ``source`` is the folder of the images, and ``counts`` are those of :class:`LabelledImages`.
    """
    counts, used = Counter(counts), set()
    for pair in pairs:
        labels, converted = labels_of(pair.labels)
        used.update(labels)
        counts["map_depth"] += converted
        counts["two_labels_map"] += set(labels) == BLACK_AND_WHITE
        counts["ignored"] += set(labels) == {IGNORED}
    counts["one_class"] = len(pairs) * (used - {IGNORED} == {0})
    text = f"{source}: {counted(len(pairs), 'image')} with label maps, "
    text += f"{counted(len(names), 'class', 'classes')} ({', '.join(names)}){count_line(counts)}"
    unused = [name for label, name in enumerate(names) if label not in used]
    return f"{text}; no pixel of the classes {', '.join(unused)}" if unused else text


def numbered_classes(pairs: Iterable[LabelledImage]) -> list[str]:
    """Return the names ``class 0``, ``class 1``, … up to the largest label of the maps."""
    largest = max((largest_label(pair.labels) for pair in pairs), default=0)
    return [f"class {label}" for label in range(max(largest, 0) + 1)]
