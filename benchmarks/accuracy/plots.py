"""The plots of the report; ``results`` are those of one comparison, as in the tables."""

import statistics
from pathlib import Path

from e3va.utils.atomic import atomic_open
from e3va.utils.optional import require

from .methods import FRONT, METHODS
from .tables import Results, full_means, of_full, over_full, titled
from .tasks import TASKS

COLUMNS = 4  # panels beside one another


def _panels(count: int, kinds: int, height: float):
    """Return a figure, and the panels [count][kinds] in rows of ``COLUMNS``."""
    matplotlib = require("matplotlib", "the plots")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns, rows = min(count, COLUMNS), -(-count // COLUMNS)
    size = (3.4 * columns + 1.2, height * rows * kinds)
    figure, axes = pyplot.subplots(rows * kinds, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    panels = []
    for place in range(count):
        row, column = divmod(place, columns)
        panels.append([axes[kinds * row + kind, column] for kind in range(kinds)])
        for axis in panels[-1]:
            axis.set_visible(True)
            axis.grid(alpha=0.3)
    return figure, panels


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def plot_scores(results: Results, seconds: Results | None, path: Path) -> None:
    """Plot the test score of every seed and their mean by method, a panel for each task.

    Args:
        results: results at equal steps.
        seconds: results at equal seconds, if there are any.
        path: PNG file.
    """
    figure, panels = _panels(len(results), 1, 3.2)
    kinds = [(results, "C0", "at equal steps", -0.13)]
    if seconds:
        kinds.append((seconds, "C1", "at equal seconds", 0.13))
    for place, ((axis,), task) in enumerate(zip(panels, results, strict=True)):
        for found, color, label, shift in kinds:
            for line, row in enumerate(found[task].values()):
                y, scores = line + shift * (len(kinds) > 1), row["scores"]
                axis.plot(scores, [y] * len(scores), "o", ms=4, alpha=0.5, color=color, label=label)
                axis.plot(statistics.fmean(scores), y, "|", color="black", ms=12)
                label = None
        titles = [titled(row) for row in results[task].values()]
        axis.set_yticks(range(len(titles)), titles if place % COLUMNS == 0 else [""] * len(titles))
        axis.invert_yaxis()
        axis.set_title(f"{task}, test {TASKS[task].metric}", fontsize=9)
    panels[0][0].legend(fontsize=7)
    _save(figure, path)


def plot_curves(results: Results, path: Path) -> None:
    """Plot training loss and validation score by step for each task, as means of the seeds."""
    figure, panels = _panels(len(results), 2, 2.8)
    for axes, (task, row) in zip(panels, results.items(), strict=True):
        for place, found in enumerate(row.values()):
            style = {"color": f"C{place % 10}", "ls": "-" if place < 10 else "--", "lw": 1.2}
            for axis, curves in zip(axes, (found["losses"], found["curves"]), strict=True):
                steps = [step for step, _ in curves[0]]
                means = [statistics.fmean(v for _, v in at) for at in zip(*curves, strict=True)]
                axis.plot(steps, means, label=titled(found), **style)
        axes[0].set_title(f"{task}, training loss", fontsize=9)
        axes[0].set_yscale("log")
        axes[1].set_title(f"{task}, validation {TASKS[task].metric}", fontsize=9)
    panels[0][0].legend(fontsize=6)
    _save(figure, path)


def plot_front(results: Results, path: Path) -> None:
    """Plot the score against kept bytes and against trained parameters, means of the tasks."""
    found = next(iter(results.values()))
    means = {m: statistics.fmean(v) for m, v in of_full(results, full_means(results)).items()}
    lines = {base: [base, *more] for base, more in FRONT.items() if base in found}
    lines |= {method: [method] for method in ("full", "frozen") if method in found}
    figure, ((left,), (right,)) = _panels(2, 1, 4.0)
    for base, names in lines.items():
        names.sort(key=lambda name: found[name]["trained_in_backbone"])
        scores = [means[name] for name in names]
        kept = [over_full(results, name, "kept_for_backward_bytes") for name in names]
        trained = [found[name]["trained_in_backbone"] for name in names]
        for axis, values in ((left, kept), (right, trained)):
            axis.plot(values, scores, "o-", ms=4, label=METHODS[base].title)
        for name, x, y in zip(names, trained, scores, strict=True):
            if len(names) > 1:
                share = f"{found[name]['share_of_backbone']:.1%}"
                right.annotate(share, (x, y), xytext=(0, 5), textcoords="offset points", fontsize=6)
    left.set_xlabel("bytes kept for the backward pass, relative to full", fontsize=8)
    right.set_xlabel("trained parameters of the backbone", fontsize=8)
    right.set_xscale("log")
    left.set_ylabel("test score in % of full, mean of the tasks", fontsize=8)
    left.legend(fontsize=7)
    _save(figure, path)
