"""Every image of a data set opened once, by several threads, with progress."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

LOG_SECONDS = 15.0
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, 5 to 8 lie on their side
# What Pillow raises for broken files, the last for ones of absurd size.
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Seen:
    """An image file as it was found.

    Attributes:
        size: width and height in pixels, turned as its EXIF data say; None if it does not decode.
        stored: the same before turning.
        orientation: of the EXIF data, 1 for upright.
        fault: why it does not decode, or "".
    """

    size: tuple[int, int] | None
    stored: tuple[int, int] | None = None
    orientation: int = 1
    fault: str = ""


def look_at(path: str | Path) -> Seen:
    """Decode an image to its end, so that a truncated one is found, and forget the pixels."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(ORIENTATION, 1)
            # All of a JPEG file is read, but only as many pixels made as are cheap.
            image.draft("RGB", (width // 8 or 1, height // 8 or 1))
            image.load()
    except BROKEN as error:
        return Seen(None, fault=brief(error))
    turned = orientation in (5, 6, 7, 8)
    size = (height, width) if turned else (width, height)
    return Seen(size, (width, height), orientation if orientation in range(1, 9) else 1)


def brief(error: BaseException) -> str:
    """An error's text on one line of limited length."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, unit: str = "image"
) -> Iterator[Result]:
    """Results of ``work`` in the order of ``items``; only a few at a time are in memory.

    Shows a bar on a terminal and a line now and then elsewhere, with the time that is left. An
    exception, as of Ctrl-C, ends it without waiting for more than what is being worked on.
    """
    threads = min(8, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Any] = deque()
    try:
        with _Progress(len(items), what, unit) as progress:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
                    progress.step()
            while waiting:
                yield waiting.popleft().result()
                progress.step()
    finally:
        pool.shutdown(cancel_futures=True)


class _Progress:
    def __init__(self, total: int, what: str, unit: str):
        terminal = sys.stderr.isatty()
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=not terminal)
        self.began = self.said = time.monotonic()

    def step(self) -> None:
        self.done += 1
        self.bar.update()
        now = time.monotonic()
        if self.bar.disable and now - self.said >= LOG_SECONDS:
            self.said = now
            left = (now - self.began) / self.done * (self.total - self.done)
            text = f"{self.what}: {self.unit} {self.done}/{self.total}"
            print(f"{text}, {tqdm.format_interval(left)} left", file=sys.stderr, flush=True)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
