"""Sizes of image files, a check of their content, and work on many images in threads."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from ..utils.errors import brief, unreadable_image
from ..utils.progress import Progress
from .problems import Problems

ORIENTATION = 0x0112  # the EXIF tag: 1 is upright; from 5 to 8 the picture lies on its side
# Pillow raises these for broken files; the last one for files of absurd size.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Item, Result = TypeVar("Item"), TypeVar("Result")
Size = tuple[int, int]  # width and height in pixels


def check_image(
    path: str, problems: Problems, identity: Any = None, recorded: Size | None = None
) -> Size | None:
    """Decode an image to its end, note its problems, and return its upright size if it is usable.

    Its size must be the ``recorded`` one, if that is given.
    """
    try:
        with Image.open(path) as image:
            size, orientation = image.size, image.getexif().get(ORIENTATION, 1)
            # A JPEG file is read to its end, but at an eighth of its size, which is faster.
            image.draft("RGB", (size[0] // 8 or 1, size[1] // 8 or 1))
            image.load()
    except BROKEN as error:
        problems.note("undecodable", path, identity, brief(error))
        return None
    width, height = upright = _upright(size, orientation)
    if recorded not in (None, upright):
        text = f"the image is {width}×{height}, its record says {recorded[0]}×{recorded[1]}"
        if size == recorded:
            text += ", its size before its EXIF orientation is applied"
        problems.note("image_size", path, identity, text)
        return None
    if orientation in range(2, 9):
        text = f"EXIF orientation {orientation}: the upright image is {width}×{height}"
        problems.note("turned", path, identity, text)
    return upright


def image_size(path: str | os.PathLike) -> Size:
    """Return the width and height of an image in pixels, upright; only its header is read."""
    try:
        with Image.open(path) as image:
            # In a PNG file, Pillow decodes all pixels to look for EXIF data behind them.
            tags = {} if image.format == "PNG" and "exif" not in image.info else image.getexif()
            return _upright(image.size, tags.get(ORIENTATION, 1))
    except BROKEN as error:
        raise unreadable_image(path, error) from None


def _upright(size: Size, orientation: int) -> Size:
    return size[::-1] if orientation in (5, 6, 7, 8) else size


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], what: str
) -> Iterator[Result]:
    """Yield the results of ``work`` in the order of ``items``; few of them are in memory at once.

    Progress is shown on stderr. An exception, such as Ctrl-C, cancels items that have not started.
    """
    threads, rest = min(8, os.cpu_count() or 1), iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(work, item) for item in islice(rest, 4 * threads))
        with Progress(0, len(items), "image", what, transient=True) as progress:
            for done in range(1, len(items) + 1):
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
                yield waiting.popleft().result()
                progress.step(done, {})
    finally:
        pool.shutdown(cancel_futures=True)
