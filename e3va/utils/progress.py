"""Progress of long work: a bar on a terminal, a line every 15 seconds in a log."""

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 15.0


def track(items: Sequence[Any], what: str, unit: str) -> Iterable[Any]:
    """Iterate with a bar on a terminal; print nothing in a log."""
    return tqdm(items, what, unit=unit, leave=False, disable=not sys.stderr.isatty())


class Progress(AbstractContextManager):
    """Progress of long work, with the time left.

    ``start`` of ``total`` steps are done before. ``transient`` work is only a part of a command:
    its bar disappears at the end, its lines of a log go to stderr, and its last step prints none.
    """

    def __init__(
        self,
        start: int,
        total: int,
        unit: str = "step",
        what: str = "training",
        transient: bool = False,
    ):
        self.unit = f"{what}: {unit}" if transient else unit
        self.transient = transient
        self.bar = tqdm(
            total=total,
            initial=start,
            unit=unit,
            desc=what,
            leave=not transient,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.first, self.total = start, total
        self.began = self.printed = time.monotonic()

    def step(self, done: int, facts: dict[str, str]) -> None:
        """Show that ``done`` steps are done, with ``facts`` by name."""
        if not self.bar.disable:
            self.bar.set_postfix_str(_join(facts), refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        is_last = done == self.total and not self.transient
        if now - self.printed >= LOG_SECONDS or is_last:
            self.printed = now
            left = (now - self.began) / max(done - self.first, 1) * (self.total - done)
            text = _join({"left": tqdm.format_interval(left), **facts})
            file = sys.stderr if self.transient else sys.stdout
            print(f"{self.unit} {done}/{self.total}: {text}", file=file, flush=True)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.bar.disable:
            print(text, flush=True)
        else:
            tqdm.write(text)

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _join(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
