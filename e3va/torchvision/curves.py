"""The learning curve of a run, as a picture."""

import json
from itertools import accumulate
from pathlib import Path

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from ..utils.optional import require
from .trainer import METRICS

KEPT = 0.7  # share of the average that the next value leaves
SCORES = ("AP mask", "AP box", "mIoU")


def read_metrics(folder: Path) -> list[dict[str, float | None]]:
    """Return the lines of a run's ``metrics.jsonl``; a score without any object is None."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def plot(runs: dict[str, list[dict[str, float | None]]], path: Path) -> None:
    """Draw losses and scores of runs as PNG; draw nothing without matplotlib.

    ``runs`` are results of :func:`read_metrics`, by the names for the legend.
    """
    try:
        matplotlib = require("matplotlib", "a plot")
    except UserError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [line for run in runs.values() for line in run]
    score = next((s for s in SCORES if any(line.get(s) is not None for line in lines)), None)
    figure, _ = pyplot.subplots(1, 2 if score else 1, figsize=(10 if score else 5, 3.4))
    for name, metrics in runs.items():
        for axis, key in zip(figure.axes, ("loss", score), strict=False):
            steps = [m["step"] for m in metrics if m.get(key) is not None]
            values = [m[key] for m in metrics if m.get(key) is not None]
            marker = None if key == "loss" else "o"  # there may be only one score
            (line,) = axis.plot(steps, values, marker=marker, label=name)
            if key == "loss":
                line.set(alpha=0.3, label="_")
                axis.plot(steps, _smooth(values), color=line.get_color(), label=name)
            axis.set_xlabel("step")
            title = "training loss, pale, and its average"
            axis.set_title(title if key == "loss" else f"{key}, validation")
            axis.set_xlim(left=0)
            axis.grid(alpha=0.3)
    if len(runs) > 1:
        figure.axes[0].legend()
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _smooth(values: list[float]) -> list[float]:
    """Return the exponential moving average, in which the first values do not count more."""
    sums = accumulate(values, lambda mean, new: KEPT * mean + (1 - KEPT) * new, initial=0.0)
    return [mean / (1 - KEPT**number) for number, mean in enumerate(sums) if number]
