"""The growth of bytes with the images' side and with the batch."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import pictures, report
from .methods import METHODS
from .models import Spec
from .rows import mib, title
from .worker import DoesNotFitError, Worker

SIZES, BATCHES, SIDE = (256, 512, 768, 1024), (1, 2, 4), 512
AXES = {
    "side": "side of one image, pixels",
    "batch": "images of {fixed_side} × {fixed_side} in a step",
}
MEASURED = {"saved": "kept for backward", "peak": "peak of a step"}


class Lines:
    """The methods of one setting, each over sides and batches.

    Args:
        setting: a :class:`cost.schedule.Setting`.
        args: the command line.
        report_step: function that gets a description of each finished measurement.
    """

    def __init__(self, setting: Any, args: argparse.Namespace, report_step: Callable[[str], None]):
        self.setting, self.args, self.report_step = setting, args, report_step

    @staticmethod
    def work(args: argparse.Namespace) -> int:
        """Return the number of measurements."""
        return len(args.methods) * (len(args.sizes) + len(args.batches))

    def measure(self) -> dict[str, Any]:
        """Measure, and return an entry of growth.json."""
        args = self.args
        sides = [(side, 1) for side in args.sizes]
        batches = [(args.side, count) for count in args.batches]
        rows = []
        for name in args.methods:
            title = METHODS[name].title.format(rank=args.rank)
            found = {
                axis: self._line(name, points)
                for axis, points in (("side", sides), ("batch", batches))
            }
            rows.append({"method": name, "title": title, **found})
        setting = asdict(self.setting)
        del setting["height"], setting["width"], setting["batch"]
        return {**setting, "rank": args.rank, "fixed_side": args.side, "rows": rows}

    def _line(self, name: str, points: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Measure ascending points; after one that does not fit, no larger one fits either."""
        line: list[dict[str, Any]] = []
        worker, why = None, None
        try:
            for side, count in points:
                found: dict[str, Any] = {}
                try:
                    if worker is None:
                        worker = self._start(name, side, count)
                        worker.ask("build")
                    if why is None:
                        found = self._point(worker, side, count)
                except DoesNotFitError as error:
                    why = str(error)
                line.append({"side": side, "batch": count, **(found or {"does_not_fit": why})})
                self.report_step(f"{name}, {count} × {side}×{side}")
        finally:
            if worker is not None:
                worker.close()
        return line

    @staticmethod
    def _point(worker: Worker, side: int, count: int) -> dict[str, Any]:
        worker.ask("load", side, side, count)
        saved = sum(worker.ask("count")["saved_bytes"].values())
        return {"saved": saved, "peak": worker.ask("peak")["peak_bytes"]}

    def _start(self, name: str, side: int, count: int) -> Worker:
        size = {"height": side, "width": side, "batch": count}
        return Worker(Spec(name, rank=self.args.rank, **{**asdict(self.setting), **size}))


KEY = ("preset", "precision", "framework", "device", "cap")


def load(folder: Path) -> list[dict[str, Any]]:
    """Return the tables of an earlier run."""
    return report.load_tables(folder / "growth.json")


def add(folder: Path, table: dict[str, Any]) -> None:
    """Add a table to growth.json, or replace the one of the same setting; write all files."""
    tables = report.merge(load(folder), table, KEY)
    report.write_json(folder / "growth.json", tables)
    parts = [f"## {title(t)}\n\n{text(t)}\n\n{report.where(t)}" for t in tables]
    report.write_text(folder / "growth.md", [__doc__.strip(), *parts])
    pictures.plot_growth(tables, folder / "growth.png", AXES, MEASURED)


def text(table: dict[str, Any]) -> str:
    """Return a Markdown table: MiB kept for backward / peak, a row for each method."""
    parts = []
    for axis in AXES:
        points = table["rows"][0][axis]
        heads = [f"{p['batch']} × {p['side']}×{p['side']}" for p in points]
        lines = [["kept / peak, MiB", *heads]]
        for row in table["rows"]:
            lines.append([row["title"], *(_cell(point) for point in row[axis])])
        parts.append(report.markdown(lines))
    return "\n\n".join(parts)


def _cell(point: dict[str, Any]) -> str:
    if "does_not_fit" in point:
        return "does not fit"
    return f"{mib(point['saved'])} / {mib(point['peak'])}"
