"""The pictures of the report."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e3va.utils.atomic import atomic_open
from e3va.utils.optional import require

from .methods import METHODS, REFERENCE
from .rows import MIB, mib, part_seconds, seconds, title

COLORS = {  # a part has one color in all pictures, light for forward and dark for backward
    "trunk": "#8d99ae",
    "highway": "#f4a261",
    "neck": "#8ecae6",
    "heads": "#95d5b2",
    "other": "#d9d9d9",
    "forward trunk": "#8d99ae",
    "forward highway": "#f4a261",
    "forward neck": "#8ecae6",
    "forward heads": "#95d5b2",
    "backward heads": "#2d8a5f",
    "backward neck": "#2378a5",
    "backward backbone": "#c1440e",
    "update": "#555555",
}
LINES = ("-o", "--s", "-.^", ":D")


def _figure(heights: Sequence[float], width: float):
    matplotlib = require("matplotlib", "the plots")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = {"height_ratios": heights}
    size = width, sum(heights)
    return pyplot.subplots(len(heights), 2, figsize=size, squeeze=False, gridspec_kw=ratios)


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def plot_cost(tables: list[dict[str, Any]], path: Path) -> None:
    """Plot bytes kept and the time of a step by part, relative to full fine-tuning, by table."""
    figure, axes = _figure([1.6 + 0.3 * len(table["rows"]) for table in tables], 12.5)
    for line, table in zip(axes, tables, strict=True):
        _draw_bytes(line[0], table)
        _draw_times(line[1], table)
    figure.tight_layout(h_pad=2.5, w_pad=2.0)
    _save(figure, path)


def _draw_bytes(axis, table: dict[str, Any]) -> None:
    rows = table["rows"]
    bars = {r["method"]: r["saved_bytes"] for r in rows if "saved_bytes" in r}
    totals = {name: sum(parts.values()) for name, parts in bars.items()}
    whole = totals.get(REFERENCE) or max(totals.values(), default=1)
    shares = {n: {p: size / whole for p, size in parts.items()} for n, parts in bars.items()}
    notes = {n: f"{total / whole:.2f}, {mib(total)} MiB" for n, total in totals.items()}
    _stack(axis, rows, shares, notes)
    axis.set_title(
        f"{title(table)}\nkept for the backward pass, relative to full fine-tuning", fontsize=9
    )


def _draw_times(axis, table: dict[str, Any]) -> None:
    rows = table["rows"]
    timed = {row["method"]: row for row in rows if row.get("rounds")}
    steps = {name: seconds(row, "step") for name, row in timed.items()}
    whole = max(steps.values(), default=1)
    shares, notes, errors = {}, {}, {}
    for name, row in timed.items():
        own = row.get("ratios", {}).get("step") or [steps[name] / whole]
        middle = statistics.median(own)
        parts = part_seconds(row)
        scale = middle / sum(parts.values())  # medians of parts do not add up to that of the step
        shares[name] = {part: value * scale for part, value in parts.items()}
        notes[name] = f"{middle:.2f}, {steps[name]:,.2f} s"
        errors[name] = (middle - min(own), max(own) - middle)
    _stack(axis, rows, shares, notes, errors)
    axis.set_yticklabels([])
    axis.set_title(
        "time of a step, relative to full fine-tuning (line: least to most of the rounds)",
        fontsize=9,
    )


def _stack(
    axis,
    rows: list[dict[str, Any]],
    shares: Mapping[str, Mapping[str, float]],
    notes: Mapping[str, str],
    errors: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Draw a bar for each method: its parts one after another, and a note at the end."""
    from matplotlib.patches import Patch

    end = 0.0
    for place, row in enumerate(rows):
        name, left = row["method"], 0.0
        for part, share in shares.get(name, {}).items():
            axis.barh(place, share, left=left, color=COLORS[part], height=0.72)
            left += share
        low, high = (errors or {}).get(name, (0.0, 0.0))
        if high + low:
            axis.errorbar(left, place, xerr=[[low], [high]], color="black", lw=1, capsize=2)
        axis.annotate(
            notes.get(name, "does not fit"),
            (left + high, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            size=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
        end = max(end, left + high)
    axis.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, (end or 1) * 1.3)
    axis.axvline(1, color="black", lw=0.6, alpha=0.4)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    used = {part for parts in shares.values() for part, share in parts.items() if share}
    patches = [Patch(color=color, label=part) for part, color in COLORS.items() if part in used]
    axis.legend(
        handles=patches,
        fontsize=7,
        ncol=4,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
    )


def plot_growth(
    tables: list[dict[str, Any]],
    path: Path,
    axes_titles: Mapping[str, str],
    measured: Mapping[str, str],
) -> None:
    """Plot bytes kept and peak of each table, over the images' side and over the batch."""
    figure, axes = _figure([3.2] * 2 * len(tables), 11)
    for number, table in enumerate(tables):
        for row, (what, name) in enumerate(measured.items()):
            for column, (along, label) in enumerate(axes_titles.items()):
                axis = axes[2 * number + row, column]
                _draw_lines(axis, table, along, what)
                axis.set_xlabel(label.format(**table), fontsize=8)
                axis.set_ylabel(f"{name}, MiB", fontsize=8)
        axes[2 * number, 0].set_title(title(table), fontsize=9, loc="left")
        axes[2 * number, 0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    _save(figure, path)


def _draw_lines(axis, table: dict[str, Any], along: str, what: str) -> None:
    for row in table["rows"]:
        place = list(METHODS).index(row["method"])  # a method looks the same in all pictures
        points = [p for p in row[along] if what in p]
        axis.plot(
            [p[along] for p in points],
            [p[what] / MIB for p in points],
            LINES[place % len(LINES)],
            color=f"C{place % 10}",
            label=row["title"],
            lw=1.3,
            ms=4,
        )
    axis.set_xticks(sorted({p[along] for row in table["rows"] for p in row[along]}))
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
