"""Image files: their sizes, their pixels, a check of their content, and work on them in threads.

A photo may have an EXIF orientation: the *stored* picture is what the file's pixels are, and the
*upright* picture is turned as EXIF says. Annotations were drawn on one of them.
"""

import importlib
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..utils.errors import UserError, brief, unreadable_image
from ..utils.optional import HOW_TO_INSTALL
from ..utils.progress import Progress
from .problems import Problems

ORIENTATION = 0x0112  # the EXIF tag: 1 is upright; from 5 to 8 the picture lies on its side
TURNS = {  # EXIF orientation: what makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNS_BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}
# What to install where Pillow does not read a suffix.
READERS = dict.fromkeys((".heic", ".heif"), HOW_TO_INSTALL["pillow_heif"])
READERS[".avif"] = "pip install --upgrade pillow"
WHITE = 65535  # the largest value of 16 bits
TO_8_BITS = (
    f"expected 8 bits, or whole numbers up to {WHITE}; scale its values to 0–255 and write 8 bits"
)
# Pillow raises these for broken files; the last one for files of absurd size.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Pillow refuses images of more than twice this warning's limit, and reads all others.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

Item, Result = TypeVar("Item"), TypeVar("Result")
Size = tuple[int, int]  # width and height in pixels


def read_image(path: str | os.PathLike, size: Size | None = None) -> Image.Image:
    """Decode an image as RGB with 8 bits in each channel, in its EXIF orientation.

    16 bits are scaled to 8: 65535 becomes 255.

    Args:
        path: path of the image file.
        size: width and height in pixels of the picture that the annotations were drawn on. If only
            the stored picture has this size, it is returned as it is stored.

    Raises:
        UserError: the file does not exist or does not decode; neither the upright nor the stored
            picture has the size; the values are float or do not fit 16 bits; the image has more
            pixels than Pillow reads.
    """
    try:
        with _open(path) as image:
            before, (upright, stored) = _orientation(image), _sizes(image)
            image.load()
            after = _orientation(image)  # Pillow turns TIFF files while it decodes them
            picture, problem = _to_8_bits(image)
            picture = picture.convert("RGB")
    except BROKEN as error:
        raise _refusal(path, error) from None
    if problem and problem[0] == "image_float":
        raise UserError(f"image {path} {problem[1]}")
    if size not in (None, upright, stored):
        raise _size_refusal(path, upright, stored, size)
    if size not in (None, upright):
        return picture if before == after else picture.transpose(TURNS_BACK[before])
    return picture.transpose(TURNS[after]) if after in TURNS else picture


def check_image(
    path: str,
    problems: Problems,
    identity: Any = None,
    recorded: Size | None = None,
    labels: str | None = None,
) -> Size | None:
    """Decode an image to its end, note its problems, and return its size if it is usable.

    The upright or the stored picture must have the ``recorded`` size, if that is given. It is the
    size of the label map ``labels``, or without a label map the size in the image's record.
    """
    try:
        with _open(path) as image:
            orientation, (upright, stored) = _orientation(image), _sizes(image)
            # A JPEG file is read to its end, but at an eighth of its size, which is faster.
            image.draft("RGB", (stored[0] // 8 or 1, stored[1] // 8 or 1))
            image.load()
            problem = _to_8_bits(image)[1]
    except BROKEN as error:
        kind, text = _fault(path, error)
        problems.note(kind, path, identity, text)
        return None
    if problem:
        problems.note(problem[0], path, identity, problem[1])
        if problem[0] == "image_float":
            return None
    if recorded not in (None, upright, stored):
        whose = "its label map is" if labels else "its record says"
        text = _wrong_size(upright, stored, recorded, whose)
        problems.note("map_size" if labels else "image_size", labels or path, identity, text)
        return None
    if recorded not in (None, upright):
        text = (
            f"EXIF orientation {orientation}: the stored picture is {stored[0]}×{stored[1]}, the "
            f"upright one {upright[0]}×{upright[1]}"
        )
        problems.note("unturned", path, identity, text)
        return stored
    if orientation in TURNS:
        text = f"EXIF orientation {orientation}: the upright image is {upright[0]}×{upright[1]}"
        problems.note("turned", path, identity, text)
    return upright


def image_size(path: str | os.PathLike) -> Size:
    """Return the width and height of an upright image in pixels; only its header is read."""
    return image_sizes(path)[0]


def image_sizes(path: str | os.PathLike) -> tuple[Size, Size]:
    """Return the sizes of the upright and of the stored picture; only the header is read.

    Raises:
        UserError: the file is no image that Pillow reads.
    """
    return _read_header(path)[0]


def check_header(path: str | os.PathLike, size: Size | None = None) -> tuple[Size, Size]:
    """Check an image as far as its header shows it; return its sizes as :func:`image_sizes` does.

    Args:
        path: path of the image file.
        size: width and height in pixels that the upright or the stored picture must have.

    Raises:
        UserError: the file is no image that Pillow reads; the image has another size, float values,
            or more pixels than Pillow reads.
    """
    (upright, stored), mode = _read_header(path)
    if mode == "F":
        raise UserError(f"image {path} has float values: {TO_8_BITS}")
    if size not in (None, upright, stored):
        raise _size_refusal(path, upright, stored, size)
    return upright, stored


def check_headers(records: Sequence[Mapping[str, Any]]) -> None:
    """Check the headers of images, see :func:`check_header`; one file takes about a millisecond.

    A file that is cut off behind its header is not noticed.

    Args:
        records: records with the ``path`` of an image, and its ``width`` and ``height`` in pixels.

    Raises:
        UserError: an image cannot be used. The text counts such images, and describes the first.
    """

    def find_fault(image: tuple[str, int, int]) -> UserError | None:
        try:
            check_header(image[0], image[1:])
        except UserError as error:
            return error
        return None

    images = list(dict.fromkeys((r["path"], r["width"], r["height"]) for r in records))
    faults = [found for found in in_threads(find_fault, images, "reading image headers") if found]
    if faults:
        more = "; e3va check lists all of them" if len(faults) > 1 else ""
        raise UserError(
            f"{len(faults)} of {len(images)} images cannot be used (first: {faults[0].line}){more}"
        )


def _read_header(path: str | os.PathLike) -> tuple[tuple[Size, Size], str]:
    """Return the sizes of the upright and of the stored picture, and Pillow's mode."""
    try:
        with _open(path) as image:
            # In a PNG file, Pillow decodes all pixels to look for EXIF data behind them.
            if image.format == "PNG" and "exif" not in image.info:
                return (image.size, image.size), image.mode
            return _sizes(image), image.mode
    except BROKEN as error:
        raise _refusal(path, error) from None


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Image.Image]:
    if Path(path).suffix.lower() in (".heic", ".heif"):
        with suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()
    # From a path, Pillow 13 maps uncompressed TIFF files into memory, and scrambles those that EXIF
    # turns: it reads their rows in the size of the upright picture.
    with open(path, "rb") as file, Image.open(file) as image:
        yield image


def _fault(path: str | os.PathLike, error: BaseException) -> tuple[str, str]:
    """Return the kind and text of the problem that Pillow does not decode a file."""
    if isinstance(error, Image.DecompressionBombError):
        found, limit = (f"{int(number):,}" for number in re.findall(r"\d+", str(error))[:2])
        text = f"has {found} pixels, Pillow reads at most {limit}: shrink it, or cut it into tiles"
        return "too_large", text
    if isinstance(error, FileNotFoundError):
        return "undecodable", "the file does not exist"
    how = READERS.get(suffix := Path(path).suffix.lower())
    if how and suffix not in Image.registered_extensions():
        return "undecodable", f"Pillow does not read {suffix} files yet; {how}"
    if isinstance(error, UnidentifiedImageError):
        return "undecodable", "cannot identify its format"
    return "undecodable", brief(error)


def _refusal(path: str | os.PathLike, error: BaseException) -> UserError:
    kind, text = _fault(path, error)
    return (
        UserError(f"image {path} {text}") if kind == "too_large" else unreadable_image(path, text)
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # corrupt EXIF data raise errors of many types
        return 1


def _sizes(image: Image.Image) -> tuple[Size, Size]:
    """Return the sizes of the upright and of the stored picture, before the image is decoded."""
    stored = image.size
    if image.format == "TIFF":  # Pillow's size is the stored or the upright one, by its version
        stored = (image.tag_v2[256], image.tag_v2[257])
    return stored[::-1] if _orientation(image) in (5, 6, 7, 8) else stored, stored


def _wrong_size(upright: Size, stored: Size, wanted: Size, whose: str) -> str:
    (width, height), turned = upright, ""
    if stored != upright:
        turned = f" ({stored[0]}×{stored[1]} before its EXIF orientation is applied)"
    return f"is {width}×{height}{turned}, {whose} {wanted[0]}×{wanted[1]}"


def _size_refusal(path: str | os.PathLike, upright: Size, stored: Size, wanted: Size) -> UserError:
    text = _wrong_size(upright, stored, wanted, "the annotations say")
    return UserError(f"image {path} {text}; correct the width and height that they give")


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, tuple[str, str] | None]:
    """Scale the values of a gray image of 16 bits; return a problem's kind and text where it is so.

    The kind ``image_float`` stands for values that no scale fits.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image, None
    values = np.asarray(image)
    usable = values[np.isfinite(values)]
    low, high = (usable.min(), usable.max()) if usable.size else (0, 0)
    if image.mode == "F" or low < 0 or high > WHITE:
        kind = "float values" if image.mode == "F" else "whole numbers"
        return image, ("image_float", f"has {kind} from {low:g} to {high:g}: {TO_8_BITS}")
    if high <= 255 and image.format == "TIFF" and image.mode == "I":
        return image, None  # 32 bits hold the values of 8 bits
    scaled = (values.astype(np.uint32) * 255 + WHITE // 2) // WHITE
    text = f"values from {low} to {high} become {scaled.min()} to {scaled.max()}"
    return Image.fromarray(scaled.astype(np.uint8)), ("image_depth", text)


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """Yield the results of ``work`` in the order of ``items``; few of them are in memory at once.

    Progress is shown on stderr. An exception, such as Ctrl-C, cancels items that have not started.
    """
    results = in_order(work, items, min(8, os.cpu_count() or 1), waiting=4)
    with Progress(0, len(items), "image", what, transient=True) as progress:
        for done, result in enumerate(results, 1):
            yield result
            progress.step(done, {})


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, waiting: int = 2
) -> Iterator[Result]:
    """Yield the results of ``work`` in the order of ``items``.

    An exception, such as Ctrl-C, cancels items that have not started.

    Args:
        work: function that may run beside itself.
        items: arguments for ``work``, each taken only when it is needed.
        threads: number of threads; with 1 there is no other thread than the caller's.
        waiting: number of items for each thread that are in work, or whose results wait.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool, rest = ThreadPoolExecutor(threads), iter(items)
    try:
        futures = deque(pool.submit(work, item) for item in islice(rest, waiting * threads))
        while futures:
            futures.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
