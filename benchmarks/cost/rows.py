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
    "none": "only the backbone",
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
    """Return whether the method fitted into the memory and was measured."""
    return "does_not_fit" not in row


def ratios(rounds: list[Row], reference: list[Row]) -> dict[str, list[float]]:
    """Return the seconds over the reference's seconds of the same round, by timed part."""
    pairs = list(zip(rounds, reference, strict=True))
    return {name: [own[name] / other[name] for own, other in pairs] for name in TIMED}


def spread(values: Sequence[float]) -> str:
    """Format the median, with the least and the most in brackets."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def seconds(row: Row, name: str) -> float:
    """Return the median of the rounds of a timed part."""
    return statistics.median(r[name] for r in row["rounds"])


def part_seconds(row: Row) -> dict[str, float]:
    """Return the median of the rounds of each part of the step, in order."""
    found = {}
    for way in ("forward", "backward"):
        for part in row["rounds"][0][f"{way}_parts"]:
            values = [r[f"{way}_parts"][part] for r in row["rounds"]]
            found[f"{way} {part}"] = statistics.median(values)
    return {**found, "update": seconds(row, "update")}


def title(table: Row) -> str:
    """Return the title of a table."""
    size = ""
    if "height" in table:
        size = f", {table['batch']} × {table['height']}×{table['width']}"
    cap = f", at most {table['cap']:g} GiB" if table["cap"] else ""
    return f"{table['preset']}, {table['precision']}{size}, {FRAMEWORKS[table['framework']]}{cap}"


def mib(size: int) -> str:
    """Format bytes in MiB; small numbers have one decimal."""
    return f"{size / MIB:,.1f}" if size < 100 * MIB else f"{size / MIB:,.0f}"
