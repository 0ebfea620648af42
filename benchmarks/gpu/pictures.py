"""Pictures of the report."""

from pathlib import Path
from typing import Any

from e3va.utils.atomic import atomic_open
from e3va.utils.optional import require


def _figure(rows: int, height: float):
    matplotlib = require("matplotlib", "the plots")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, 1, figsize=(8, height), squeeze=False)


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def plot_forward(found: dict[tuple[str, str], dict[str, float]], path: Path) -> None:
    """Plot the seconds of each form, relative to the fast form where it was measured."""
    heights = [0.8 + 0.35 * len(seconds) for seconds in found.values()]
    figure, axes = _figure(len(found), sum(heights))
    for (axis,), ((preset, precision), seconds) in zip(axes, found.items(), strict=True):
        base = seconds.get("fast") or max(seconds.values())
        values = [value / base for value in seconds.values()]
        bars = axis.barh(list(seconds), values, color="#8d99ae")
        notes = [
            f"{value:.2f}, {1000 * s:.1f} ms"
            for value, s in zip(values, seconds.values(), strict=True)
        ]
        axis.bar_label(bars, notes, padding=3, fontsize=8)
        axis.set_title(f"{preset}, {precision}: seconds, relative to the fast form", fontsize=9)
        axis.set_xlim(0, 1.35 * max(values))
        axis.invert_yaxis()
    _save(figure, path)


def plot_capacity(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the largest image's pixels and the largest batch over the memory limit."""
    figure, axes = _figure(2, 6)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["cap"])
        caps = [row["cap"] for row in own]
        pixels = [row["image"][0] * row["image"][1] / 1e6 if row["image"] else 0 for row in own]
        batches = [row["batch"] or 0 for row in own]
        for (axis,), values in zip(axes, (pixels, batches), strict=True):
            axis.plot(caps, values, "o-", label=method)
    labels = ("largest image, megapixels", "largest batch of 800×1333")
    for (axis,), label in zip(axes, labels, strict=True):
        axis.set(xlabel="memory limit, GiB", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)
