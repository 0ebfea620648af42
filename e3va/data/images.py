"""Sizes of image files, whole decoding, and work on many images in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ..utils.errors import brief, unreadable_image
from ..utils.progress import Progress

ORIENTATION = 0x0112  # the EXIF tag: 1 is upright; from 5 to 8 the picture lies on its side
# Pillow raises these for broken files; the last one for files of absurd size.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class DecodedImage:
    """The result of decoding an image file.

    Attributes:
        size: width and height in pixels, upright; None if the file does not decode.
        stored_size: width and height before the EXIF orientation is applied.
        orientation: EXIF orientation, 1 for upright.
        fault: reason why the file does not decode, or "".
    """

    size: tuple[int, int] | None
    stored_size: tuple[int, int] | None = None
    orientation: int = 1
    fault: str = ""


def decode_image(path: str | Path) -> DecodedImage:
    """Decode an image to its end, so that a truncated file is found, and drop the pixels."""
    try:
        with Image.open(path) as image:
            size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
            # A JPEG file is read to its end, but at an eighth of its size, which is faster.
            image.draft("RGB", (size[0] // 8 or 1, size[1] // 8 or 1))
            image.load()
    except BROKEN as error:
        return DecodedImage(None, fault=brief(error))
    orientation = orientation if orientation in range(1, 9) else 1
    return DecodedImage(_upright(size, orientation), size, orientation)


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return the width and height of an image in pixels, upright; only its header is read.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with Image.open(path) as image:
            # In a PNG file, Pillow decodes all pixels to look for EXIF data behind them.
            tags = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            return _upright(image.size, tags.get(ORIENTATION, 1))
    except BROKEN as error:
        raise unreadable_image(path, error) from None


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if orientation in (5, 6, 7, 8) else size


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, unit: str = "image"
) -> Iterator[Result]:
    """Yield the results of ``work`` in the order of ``items``; few of them are in memory at once.

    Progress is shown on stderr. An exception, such as Ctrl-C, cancels the items that have not
    started.
    """
    threads = min(8, os.cpu_count() or 1)
    pool, waiting = ThreadPoolExecutor(threads), deque[Future]()
    try:
        with Progress(0, len(items), unit, what, transient=True) as progress:
            for number, item in enumerate(items):
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
                    progress.step(number + 1 - len(waiting), {})
            while waiting:
                yield waiting.popleft().result()
                progress.step(len(items) - len(waiting), {})
    finally:
        pool.shutdown(cancel_futures=True)
