"""Progress of long work: a bar on a terminal, a line every 15 seconds in a log."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 15.0


def track(items: Sequence[Any], what: str, unit: str) -> Iterable[Any]:
    """Iterate with a bar on a terminal; print nothing elsewhere."""
    return tqdm(items, what, unit=unit, leave=False, disable=not sys.stderr.isatty())


class Progress:
    """Progress of long work, with the time left.

    Args:
        start: number of steps done before.
        total: number of all steps.
        unit: name of a step.
        what: name of the work.
    """

    def __init__(self, start: int, total: int, unit: str = "step", what: str = "training"):
        self.unit = unit
        self.bar = tqdm(
            total=total,
            initial=start,
            unit=unit,
            desc=what,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.first, self.total = start, total
        self.began = self.printed = time.monotonic()

    def step(self, done: int, facts: dict[str, str]) -> None:
        """Show that ``done`` steps are done, with ``facts`` by name."""
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join(f"{k} {v}" for k, v in facts.items()), refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.printed >= LOG_SECONDS or done == self.total:
            self.printed = now
            left = (now - self.began) / max(done - self.first, 1) * (self.total - done)
            facts = {"left": tqdm.format_interval(left), **facts}
            text = ", ".join(f"{k} {v}" for k, v in facts.items())
            print(f"{self.unit} {done}/{self.total}: {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.bar.disable:
            print(text, flush=True)
        else:
            tqdm.write(text)

    def close(self) -> None:
        """Close the bar and leave it on the screen."""
        self.bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
