"""What all parts share: the device, the time that is left, and the file of results."""

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from e3va.swin.precision import fast_half
from e3va.utils.errors import UserError


@dataclass
class Part:
    """A running part.

    Attributes:
        device: the device that is measured.
        short: whether everything is small.
        results: file to which each result is appended, one JSON object a line.
        until: time.monotonic() at which the part should have ended.
    """

    device: torch.device
    short: bool
    results: Path
    until: float

    @property
    def cuda(self) -> bool:
        """Whether the device is a CUDA card."""
        return self.device.type == "cuda"

    @property
    def half(self) -> str:
        """Name of the half-precision type of mixed precision on this device."""
        return "fp16" if fast_half(self.device) is torch.float16 else "bf16"

    def record(self, table: str, **row: Any) -> None:
        """Append a row to a table of the report."""
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"table": table, **row}) + "\n")
        shown = " ".join(f"{k} {_shown(v)}" for k, v in row.items() if not isinstance(v, dict))
        print(f"{table}: {shown}", flush=True)

    def check(self, what: str, found: float, limit: float) -> None:
        """Record whether a value is at most a limit; not a number fails."""
        self.record("checks", what=what, found=found, limit=limit, passed=bool(found <= limit))

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Record an error in the block as a failed check, and go on after it."""
        try:
            yield
        except Exception as error:
            line = error.line if isinstance(error, UserError) else f"{error!r}"
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            self.record("checks", what=what, passed=False, error=f"{line[:300]} ({place})")
        finally:
            if self.cuda:
                torch.cuda.empty_cache()

    def out_of_time(self, needed: float = 0.0) -> bool:
        """Return whether fewer than ``needed`` seconds are left."""
        return time.monotonic() + needed > self.until

    def seconds(self, run, rounds: int = 5) -> float:
        """Return the median seconds of several calls, after one that is not timed."""
        run()
        found = []
        for _ in range(1 if self.short else rounds):
            self._wait()
            began = time.perf_counter()
            run()
            self._wait()
            found.append(time.perf_counter() - began)
        return sorted(found)[len(found) // 2]

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
