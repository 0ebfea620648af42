"""Label maps: PNG files with a class number in every pixel, one for each image.

The label map of ``images/a.jpg`` is ``labels/a.png``, of the same size. Label k is class k, and 255
stands for no class. In a PNG file with a palette, the indices are the labels, not the colors.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..utils.errors import UserError, brief
from ..utils.paths import find_images
from .images import BROKEN, image_size

IGNORED = 255
MOST_CLASSES = IGNORED  # labels have 8 bits


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label map: files that exist and have the same size."""

    image: Path
    labels: Path
    width: int
    height: int


class LabelMapFault(UserError):
    """The reason why a label map cannot be used, as a kind of e3va.data.problems and a text."""

    def __init__(self, kind: str, path: str | os.PathLike, text: str):
        super().__init__(f"label map {path} {text}; replace it, or remove its image")
        self.kind, self.text = kind, text


def pair_label_maps(images: str | os.PathLike, labels: str | os.PathLike) -> list[LabelledImage]:
    """Find the label map of every image in a folder; only the files' headers are read.

    Subfolders are not read, and label maps without an image are skipped.

    Raises:
        UserError: a folder does not exist or has no images, or both folders are the same; an image
            has no label map; a file cannot be read; a label map has another size than its image,
            or more than one channel of 8 bits.
    """
    root, maps = check_folders(images, labels)
    return [_pair(path, maps / f"{path.stem}.png") for path in find_images([str(root)])]


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


def _pair(image: Path, labels: Path) -> LabelledImage:
    if not labels.is_file():
        raise UserError(
            f"image {image} has no label map {labels}: expected a PNG file of the same name with a "
            "class number in every pixel"
        )
    width, height = size = image_size(image)
    with _open(labels) as file:
        map_size = file.size
    if map_size != size:
        raise UserError(
            f"label map {labels} is {map_size[0]}×{map_size[1]}, its image {image} is "
            f"{width}×{height}: expected the same size"
        )
    return LabelledImage(image, labels, width, height)


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P"):
                raise LabelMapFault(
                    "map_mode",
                    path,
                    f"has Pillow's mode {file.mode}: expected one channel of 8 bits (L) or a "
                    "palette (P), with a class number in every pixel instead of a color",
                )
            yield file
    except BROKEN as error:
        raise LabelMapFault("undecodable", path, f"cannot be read: {brief(error)}") from None


def load_labels(path: str | os.PathLike, first: int = 0) -> np.ndarray:
    """Read a label map as classes, [H, W] uint8; raise LabelMapFault if it cannot be used."""
    with _open(path) as file:
        labels = np.array(file)
    if first:
        ignored = (labels < first) | (labels == IGNORED)
        labels -= np.uint8(first)
        labels[ignored] = IGNORED
    return labels


def read_label_map(path: str | os.PathLike, first: int = 0, classes: int = MOST_CLASSES) -> Tensor:
    """Read a label map as classes, [H, W] uint8: 0 to ``classes`` − 1, and :data:`IGNORED`.

    ``first`` is the label of class 0 in the file. Smaller labels become :data:`IGNORED` (in ADE20K,
    label 0 is "other"), and 255 stays :data:`IGNORED`.

    Raises:
        UserError: the file cannot be read, or has a label that stands for no class.
    """
    labels = load_labels(path, first)
    largest = int(labels.max(initial=0, where=labels != IGNORED))
    if largest >= classes:
        raise UserError(
            f"label map {path} has the label {largest + first}, but the classes are "
            f"{first} to {classes + first - 1}; {IGNORED} stands for no class"
        )
    return torch.from_numpy(labels)


def largest_label(path: str | os.PathLike) -> int:
    """Return the largest label of a class, or −1; a file is read again only if it has changed."""
    status = os.stat(path)
    return _largest_label(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1 << 16)
def _largest_label(path: str, _changed: int, _size: int) -> int:
    labels = read_label_map(path).numpy()
    return int(labels[labels != IGNORED].astype(int).max(initial=-1))


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


def check_labels(pairs: Iterable[LabelledImage], names: Sequence[str]) -> None:
    """Check that every label is a class, and that at least one pixel has a class."""
    labelled = False
    for pair in pairs:
        largest = largest_label(pair.labels)
        labelled = labelled or largest >= 0
        if largest >= len(names):
            raise UserError(
                f"label map {pair.labels} has the label {largest}, but the classes are 0 to "
                f"{len(names) - 1} ({', '.join(names)}); {IGNORED} stands for no class"
            )
    if not labelled:
        raise UserError(
            f"every pixel of the label maps in {pair.labels.parent} is {IGNORED}, which stands "
            "for no class: expected a class number in every pixel"
        )


def numbered_classes(pairs: Iterable[LabelledImage]) -> list[str]:
    """Return the names ``class 0``, ``class 1``, … up to the largest label of the maps."""
    largest = max((largest_label(pair.labels) for pair in pairs), default=0)
    return [f"class {label}" for label in range(max(largest, 0) + 1)]
