"""The plots of a report, as data addresses of PNG pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..utils.optional import require
from .findings import Findings

MOST_NAMED = 25  # classes whose names fit on an axis
DPI = 110


def address(content: bytes, kind: str = "png") -> str:
    """Return the data address of a picture."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# Fonts with the letters of many languages, of which a system has some or none.
_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei")
_FONTS += ("PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Noto Sans Arabic")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    matplotlib = require("matplotlib", "a report")
    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    known = {font.name for font in font_manager.fontManager.ttflist}
    pyplot.rcParams["font.family"] = ["DejaVu Sans", *(name for name in _FONTS if name in known)]
    pyplot.rcParams["text.parse_math"] = False  # a class may be called "$x$"
    return pyplot.subplots(figsize=(width, height))


def _finish(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=DPI)
    pyplot.close(figure)
    return address(buffer.getvalue())


def curve(runs: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """Draw (step, value) points of runs; short ones with a mark at each point."""
    figure, axis = _figure(5, 3.2)
    for points in runs.values():
        marker = "o" if len(points) < 20 else None
        axis.plot(*zip(*points, strict=True), marker=marker)
    axis.set(xlabel="step", title=title)
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    if len(runs) > 1:
        axis.legend(axis.lines, runs, fontsize=8)  # of labels it leaves out "_x"
    return _finish(figure)


def bars(values: Mapping[str, float], title: str) -> str:
    """Draw a horizontal bar for each value; NaN has none."""
    figure, axis = _figure(5, 1 + 0.28 * len(values))
    names = list(values)
    axis.barh(names, [0 if np.isnan(v) else v for v in values.values()], color="#0072b2")
    for place, value in enumerate(values.values()):
        text = "no objects" if np.isnan(value) else f"{value:.3g}"
        axis.text(0 if np.isnan(value) else value, place, f" {text}", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title)
    axis.margins(x=0.15)
    return _finish(figure)


def precision_recall(findings: Findings) -> str:
    """Draw the precision of each class over the recall, at IoU 0.5."""
    figure, axis = _figure(5, 3.6)
    for precision in findings.precision.values():
        axis.plot(np.linspace(0, 1, len(precision)), precision)
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title("precision and recall, IoU 0.5")
    axis.grid(alpha=0.3)
    if len(findings.precision) <= MOST_NAMED:
        axis.legend(axis.lines, findings.precision, fontsize=8)
    return _finish(figure)


def confusion(findings: Findings) -> str:
    """Draw the confusion: the share of each true class (row) that is found as each class."""
    names, counts = findings.names, findings.confusion
    rows = counts.sum(1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    side = min(12.0, 2.5 + 0.45 * len(names))
    figure, axis = _figure(side, side)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="found", ylabel="true", title="confusion, % of each true class")
    if len(names) <= MOST_NAMED:
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                text = f"{100 * share:.0f}"
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    return _finish(figure)
