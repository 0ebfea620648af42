"""What a user sees of a download: a bar on a terminal, a line at its start elsewhere."""

import sys

from ..utils.optional import require


def say(text: str) -> None:
    """Tell the user what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**20:.1f} MiB" if size >= 100_000 else f"{size} bytes"


class Bar:
    """Progress of one download, with the time that is left.

    Args:
        name: of the file.
        url: where it comes from.
    """

    def __init__(self, name: str, url: str):
        self.name, self.url = name, url
        self.bar = None
        self.said = False

    def begin(self, have: int, total: int | None) -> None:
        """Bytes are going to arrive after the first ``have``."""
        if not self.said:
            size = f" ({mebibytes(total)})" if total else ""
            resumed = f", going on after {mebibytes(have)}" if have else ""
            self.say(f"Downloading {self.name}{size} from {self.url}{resumed}")
            self.said = True
        if sys.stderr.isatty() and self.bar is None:
            tqdm = require("tqdm", "the progress bar of a download").tqdm
            options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
            self.bar = tqdm(total=total, desc=self.name, dynamic_ncols=True, **options)
        if self.bar is not None:
            self.bar.reset(total)
            self.bar.initial = self.bar.n = self.bar.last_print_n = have  # not part of the speed
            self.bar.refresh()

    def update(self, have: int) -> None:
        """``have`` bytes have arrived altogether."""
        if self.bar is not None:
            self.bar.update(have - self.bar.n)

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        if self.bar is None:
            say(text)
        else:
            self.bar.write(text, file=sys.stderr)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
