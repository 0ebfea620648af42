"""Label maps of a user's own: PNG files with a class number in every pixel, beside images.

For ``a.jpg`` in the folder of images there is ``a.png`` in the folder of label maps, of equal size.
Label k is class k, 255 stands for no class. Of a palette image the indices count, not the colours.
"""

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError
from ..utils.optional import require
from ..utils.paths import find_images

IGNORED = 255
MOST_CLASSES = IGNORED  # labels are of 8 bits
_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side
# Pillow raises all of these for broken files.
_DAMAGE = (OSError, SyntaxError, ValueError)


@dataclass(frozen=True)
class LabelledImage:
    """An image and its label map: files that are there, of one size."""

    image: Path
    labels: Path
    width: int
    height: int


def pair_label_maps(images: str | os.PathLike, labels: str | os.PathLike) -> list[LabelledImage]:
    """Find the label map of every image of a folder; the files' headers alone are read.

    Args:
        images: folder of images; its subfolders are not read.
        labels: folder of label maps; what belongs to no image is left out.

    Raises:
        UserError: a folder is missing or has no images, or both are one; an image without a label
            map; a file that cannot be read; a label map of another size than its image, or not of
            one channel of 8 bits.
    """
    root, maps = (Path(os.path.expanduser(folder)) for folder in (images, labels))
    for folder, what in ((root, "images"), (maps, "label maps (PNG files)")):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: expected a folder of {what}")
    if root.resolve() == maps.resolve():
        raise UserError(
            f"images and label maps are both in {root}: expected a folder for each, where a.jpg "
            "has the label map a.png"
        )
    return [_pair(path, maps / f"{path.stem}.png") for path in find_images([str(root)])]


def _pair(image: Path, labels: Path) -> LabelledImage:
    if not labels.is_file():
        raise UserError(
            f"image {image} has no label map {labels}: expected a PNG of the same name, a class "
            "number in every pixel"
        )
    size = image_size(image)
    with _open(labels, "label map") as file:
        label_size, mode = file.size, file.mode
    if mode not in ("L", "P"):
        raise UserError(
            f"label map {labels} has Pillow's mode {mode}: expected one channel of 8 bits (L), or "
            "a palette (P), with a class number in every pixel and not colours"
        )
    if label_size != size:
        raise UserError(
            f"label map {labels} is {label_size[0]}×{label_size[1]}, its image {image} "
            f"{size[0]}×{size[1]}: expected the same size"
        )
    return LabelledImage(image, labels, *size)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Width and height in pixels of an image, turned as its EXIF data say; only its header is read.

    Raises:
        UserError: it cannot be read.
    """
    with _open(path, "image") as image:
        # Pillow decodes a whole PNG file in search of EXIF data that may stand behind the picture.
        tags = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
        turned = tags.get(_ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size


def _open(path: str | os.PathLike, kind: str) -> Any:
    pillow = require("PIL.Image", "reading images")
    try:
        return pillow.open(path)
    except (*_DAMAGE, pillow.DecompressionBombError) as error:
        raise _unreadable(path, kind, error) from None


def _unreadable(path: str | os.PathLike, kind: str, error: BaseException) -> UserError:
    missing = isinstance(error, FileNotFoundError)
    reason = "it is not there" if missing else " ".join(str(error).split())[:160]
    return UserError(f"{kind} {path} cannot be read: {reason}; write it again or take it out")


def read_label_map(path: str | os.PathLike, first: int = 0, classes: int = MOST_CLASSES) -> Tensor:
    """A label map as classes, [H, W] uint8.

    Args:
        first: the file's label of class 0; what is below is ignored (in ADE20K 0 is "other"), and
            255 whatever is first.
        classes: how many there are.

    Returns:
        0 to ``classes`` − 1, and :data:`IGNORED`.

    Raises:
        UserError: the file cannot be read, is not of one channel of 8 bits, or has a label that is
            of no class.
    """
    with _open(path, "label map") as file:
        try:
            width, height = file.size
            labels = torch.frombuffer(bytearray(file.tobytes()), dtype=torch.uint8)
            labels = labels.view(height, width)
        except (*_DAMAGE, RuntimeError) as error:
            raise _unreadable(path, "label map", error) from None
    if first:
        ignored = (labels < first) | (labels == IGNORED)
        labels = labels.sub_(first).masked_fill_(ignored, IGNORED)
    known = labels[labels != IGNORED]
    if len(known) and known.max() >= classes:
        raise UserError(
            f"label map {path} has the label {int(known.max()) + first}, but the classes are "
            f"{first} to {classes + first - 1}; {IGNORED} stands for no class"
        )
    return labels


def count_labels(path: str | os.PathLike) -> Tensor:
    """How many pixels of a label map have each label, [256] int64.

    Raises:
        UserError: as :func:`read_label_map`.
    """
    status = os.stat(path)  # a file is read once and again when it has changed
    return _count_labels(str(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1 << 16)
def _count_labels(path: str, _changed: int, _size: int) -> Tensor:
    return read_label_map(path).flatten().long().bincount(minlength=IGNORED + 1)


def check_labels(pairs: Iterable[LabelledImage], names: Sequence[str]) -> None:
    """Check that every label of every map is a class, and that there is any.

    Raises:
        UserError: a label has no name, or all pixels of all maps are ignored.
    """
    labelled = False
    for pair in pairs:
        used = count_labels(pair.labels)[:IGNORED].nonzero().flatten()
        labelled = labelled or len(used) > 0
        if len(used) and used[-1] >= len(names):
            raise UserError(
                f"label map {pair.labels} has the label {int(used[-1])}, but the classes are 0 to "
                f"{len(names) - 1} ({', '.join(names)}); {IGNORED} stands for no class"
            )
    if not labelled:
        raise UserError(
            f"all pixels of all label maps in {pair.labels.parent} are {IGNORED}, which stands "
            "for no class: expected a class number in every pixel"
        )


def numbered_classes(pairs: Iterable[LabelledImage]) -> list[str]:
    """Names for classes that have none: ``class 0`` … up to the largest label of the maps."""
    largest = 0
    for pair in pairs:
        used = count_labels(pair.labels)[:IGNORED].nonzero().flatten()
        largest = max(largest, int(used[-1]) if len(used) else 0)
    return [f"class {k}" for k in range(largest + 1)]
