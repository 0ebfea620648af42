"""The measurements as JSON and as Markdown tables; the pictures are in pictures.py."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError

from . import pictures
from .methods import REFERENCE
from .rows import MIB, TIMED, Row, fits, mib, part_seconds, seconds, spread, title

GIGA = 1e9
KEY = ("preset", "precision", "framework", "device", "height", "width", "batch", "cap")
NOTES = """\
Kept: bytes that autograd keeps from the forward for the backward pass, each storage once, without
parameters. Peak: the most bytes of tensors alive at once in a step, above those from before it; it
includes gradients. Weights, optimizer: bytes that are always there. Whole: weights, optimizer and
peak. Seconds: median of the rounds; ratios to full are taken within each round: median
(least–most). FLOPs: matrix products, attention and convolutions; a multiply-add is two. Limit: the
time of the step's FLOPs at the rate of a large matrix product in that precision. Copies: the time
to read the weights, and to write and read the kept bytes, at the rate of a large copy. Weights are
random, so the number of foreground regions, and with it part of the heads' work, differs from that
of a trained model."""


def markdown(lines: list[list[str]]) -> str:
    """Return a table; the first line is its head, and the first column is aligned to the left."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def text(table: Row) -> str:
    """Return the Markdown tables of memory, times and limits."""
    rows = [row for row in table["rows"] if fits(row)]
    left_out = [
        f"{r['method']}: does not fit ({r['does_not_fit']})." for r in table["rows"] if not fits(r)
    ]
    if not rows:
        return "\n".join(left_out)
    reference = next((row for row in rows if row["method"] == REFERENCE), None)
    tables = [_memory(table["rows"], reference), _times(table["rows"]), _parts(rows)]
    if table["limits"]:
        tables.append(_limits(rows, table["limits"]))
    return "\n\n".join([*tables, *left_out])


def _memory(rows: list[Row], reference: Row | None) -> str:
    parts = list(dict.fromkeys(p for row in rows if fits(row) for p in row["saved_bytes"]))
    seen = [row["saved_bytes"] for row in rows if fits(row)]
    parts = [part for part in parts if max(saved.get(part, 0) for saved in seen) > MIB / 20]
    head = ["MiB", "trained", "of the backbone", "kept", "/ full", *parts]
    lines = [[*head, "peak", "/ full", "weights", "optimizer", "whole"]]
    for row in rows:
        if not fits(row):
            lines.append([row["method"], "does not fit", *[""] * (len(lines[0]) - 2)])
            continue
        kept, resident = sum(row["saved_bytes"].values()), row["resident_bytes"]
        there = [resident["weights"], resident["optimizer"]]
        full = reference and sum(reference["saved_bytes"].values())
        lines.append(
            [
                row["title"],
                f"{row['trained']:,}",
                f"{row['share_of_backbone']:.2%}",
                mib(kept),
                _over(kept, full),
                *(mib(row["saved_bytes"].get(part, 0)) for part in parts),
                mib(row["peak_bytes"]),
                _over(row["peak_bytes"], reference and reference["peak_bytes"]),
                *map(mib, there),
                mib(sum(there) + row["peak_bytes"]),
            ]
        )
    return markdown(lines)


def _times(rows: list[Row]) -> str:
    lines = [["seconds", *(f"{name}{unit}" for name in TIMED for unit in ("", " / full"))]]
    for row in filter(fits, rows):
        cells = []
        for name in TIMED:
            own = row.get("ratios")
            cells += [f"{seconds(row, name):.3f}", spread(own[name]) if own else "–"]
        lines.append([row["title"], *cells])
    return markdown(lines)


def _parts(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in part_seconds(row)))
    lines = [["seconds of", *names]]
    for row in rows:
        own = part_seconds(row)
        lines.append([row["title"], *(f"{own[n]:.3f}" if n in own else "–" for n in names)])
    return markdown(lines)


def _limits(rows: list[Row], limits: dict[str, float]) -> str:
    parts = list(dict.fromkeys(part for row in rows for part in row["flops"]["forward"]))
    head = ["GFLOP", *(f"forward {part}" for part in parts), "backward", "step"]
    lines = [[*head, "limit, s", "step, s", "reached", "copies, s"]]
    for row in rows:
        forward, backward = row["flops"]["forward"], row["flops"]["backward"]
        total = sum(forward.values()) + backward
        least, took = total / limits["flops"], seconds(row, "step")
        moved = row["resident_bytes"]["weights"] + 2 * sum(row["saved_bytes"].values())
        lines.append(
            [
                row["title"],
                *(f"{forward.get(part, 0) / GIGA:,.1f}" for part in parts),
                f"{backward / GIGA:,.1f}",
                f"{total / GIGA:,.1f}",
                f"{least:.3f}",
                f"{took:.3f}",
                f"{least / took:.0%}",
                f"{moved / limits['bytes']:.3f}",
            ]
        )
    rates = (
        f"The machine's rates: {limits['flops'] / 1e12:,.2f} TFLOP/s (square matrices), "
        f"{limits['bytes'] / GIGA:,.1f} GB/s (copy, read and written)."
    )
    return f"{markdown(lines)}\n\n{rates}"


def _over(value: float, full: float | None) -> str:
    return f"{value / full:.2f}" if full else "–"


def where(table: Row) -> str:
    """Return the machine and the versions with which a table was measured."""
    machine = table["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    return (
        f"Measured on {machine['device']}, {machine['threads']} threads on {machine['cores']} "
        f"cores; {versions}; commit {machine['commit']}."
    )


def machine(device: str) -> dict[str, Any]:
    """Return a description of the machine, and the versions of the libraries."""
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    for name in ("torchvision", "detectron2", "peft"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            continue
    cuda = torch.device(device).type == "cuda"
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.processor() or platform.machine())


def _commit() -> str:
    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def merge(tables: list[Row], new: Row, key: Sequence[str]) -> list[Row]:
    """Put the new table in the place of the one of the same setting, or at the end."""
    place = [tuple(table.get(name) for name in key) for table in tables]
    own = tuple(new.get(name) for name in key)
    if own in place:
        return [new if found == own else t for t, found in zip(tables, place, strict=True)]
    return [*tables, new]


def load_tables(path: Path) -> list[Row]:
    """Return the tables that an earlier run wrote; no tables if there is no file.

    Raises:
        UserError: this benchmark did not write the file.
    """
    if not path.is_file():
        return []
    try:
        return json.loads(path.read_text())["tables"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} was not written by this benchmark: give another --output"
        ) from None


def write_json(path: Path, tables: list[Row]) -> None:
    """Write the tables."""
    with atomic_open(path, "w") as file:
        json.dump({"tables": tables}, file, indent=1)


def write_text(path: Path, paragraphs: list[str]) -> None:
    """Write Markdown."""
    with atomic_open(path, "w") as file:
        file.write("\n\n".join(paragraphs) + "\n")


def load(folder: Path) -> list[Row]:
    """Return the tables of an earlier run."""
    return load_tables(folder / "cost.json")


def add(folder: Path, table: Row) -> None:
    """Add a table to cost.json, or replace that of the same setting, and write all files."""
    tables = merge(load(folder), table, KEY)
    write_json(folder / "cost.json", tables)
    parts = [f"## {title(t)}\n\n{text(t)}\n\n{where(t)}" for t in tables]
    write_text(folder / "cost.md", [*parts, NOTES])
    of_preset = [other for other in tables if other["preset"] == table["preset"]]
    pictures.plot_cost(of_preset, folder / f"cost_{table['preset']}.png")
