"""What follows from the measured rows of a table."""

import statistics
from collections.abc import Sequence
from typing import Any

from .methods import REFERENCE

MIB = 2**20
TIMED = ("forward", "backward", "update", "step")
FRAMEWORKS = {
    "detectron2": "Cascade Mask R-CNN (Detectron2)",
    "torchvision": "Cascade Mask R-CNN (torchvision)",
    "none": "the backbone alone",
}

Row = dict[str, Any]


def with_ratios(rows: list[Row]) -> list[Row]:
    """Add to each row its seconds over the reference's, round by round."""
    reference = next((r for r in rows if r["method"] == REFERENCE and fits(r)), None)
    for row in rows if reference else []:
        if fits(row):
            row["ratios"] = ratios(row["rounds"], reference["rounds"])
    return rows


def fits(row: Row) -> bool:
    """Whether the method could be measured."""
    return "does_not_fit" not in row


def ratios(rounds: list[Row], reference: list[Row]) -> dict[str, list[float]]:
    """For each timed thing its seconds over the reference's of the same round."""
    pairs = list(zip(rounds, reference, strict=True))
    return {name: [own[name] / other[name] for own, other in pairs] for name in TIMED}


def spread(values: Sequence[float]) -> str:
    """Median, and least and most in brackets."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def seconds(row: Row, name: str) -> float:
    """Median of the rounds of a timed thing."""
    return statistics.median(r[name] for r in row["rounds"])


def part_seconds(row: Row) -> dict[str, float]:
    """Median of the rounds of each part of the step, in the order in which they run."""
    found = {}
    for way in ("forward", "backward"):
        for part in row["rounds"][0][f"{way}_parts"]:
            values = [r[f"{way}_parts"][part] for r in row["rounds"]]
            found[f"{way} {part}"] = statistics.median(values)
    return {**found, "update": seconds(row, "update")}


def title(table: Row) -> str:
    """Of a table, for people."""
    size = ""
    if "height" in table:
        size = f", {table['batch']} × {table['height']}×{table['width']}"
    cap = f", at most {table['cap']:g} GiB" if table["cap"] else ""
    return f"{table['preset']}, {table['precision']}{size}, {FRAMEWORKS[table['framework']]}{cap}"


def mib(size: int) -> str:
    """Bytes in MiB, with one decimal where that says something."""
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"
