"""Paired comparisons of methods over tasks and seeds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from e3va.utils.optional import require

PAIRS = tuple(
    (method, other)
    for method in ("e3va_chain", "e3va_wide")
    for other in ("full", "lora", "frozen")
)
LEVEL = 0.05  # of p values that count as significant
Scores = Mapping[str, Mapping[str, Sequence[float]]]  # task → method → score of each seed


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' scores, in per cent of full fine-tuning's mean score.

    Attributes:
        comparison: what both methods had as much of: ``"steps"`` or ``"seconds"``.
        method: the first method.
        other: the method whose scores are subtracted.
        mean: mean over the tasks.
        low: lower end of the 95% interval of the mean over tasks; None with one task.
        high: its upper end.
        tasks_ahead: number of tasks with a positive mean difference.
        tasks: number of tasks.
        p: p value of the Wilcoxon signed-rank test over tasks and seeds, two-sided.
        ranks: sum of the differences' signed ranks, which gives the test its direction.
        p_holm: p value after Holm's correction over all reported pairs.
    """

    comparison: str
    method: str
    other: str
    mean: float
    low: float | None
    high: float | None
    tasks_ahead: int
    tasks: int
    p: float
    ranks: float
    p_holm: float = 1.0

    @property
    def verdict(self) -> str:
        """``"ahead"`` or ``"behind"``; ``"not significant"`` without significance.

        A significant test whose ranks and mean have different signs has no direction.
        """
        if self.p_holm >= LEVEL or self.mean * self.ranks <= 0:
            return "not significant"
        return "ahead" if self.mean > 0 else "behind"

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "verdict": self.verdict}


def differences(
    scores: Scores, full: Mapping[str, float], method: str, other: str
) -> dict[str, list[float]]:
    """Return, for each task, the difference of every seed in per cent of full's mean score.

    Args:
        scores: scores of both methods, with the same seeds in the same order.
        full: mean score of full fine-tuning by task, not zero.
        method: the first method.
        other: the method whose scores are subtracted.
    """
    return {
        task: [100 * (a - b) / full[task] for a, b in zip(row[method], row[other], strict=True)]
        for task, row in scores.items()
    }


def compare(
    comparison: str, scores: Scores, full: Mapping[str, float], method: str, other: str
) -> Difference:
    """Compare two methods; ``p_holm`` of the result is not corrected yet."""
    by_task = differences(scores, full, method, other)
    means = [statistics.fmean(values) for values in by_task.values()]
    p, ranks = signed_rank([value for values in by_task.values() for value in values])
    low, high = interval(means) or (None, None)
    return Difference(
        comparison=comparison,
        method=method,
        other=other,
        mean=statistics.fmean(means),
        low=low,
        high=high,
        tasks_ahead=sum(mean > 0 for mean in means),
        tasks=len(means),
        p=p,
        ranks=ranks,
    )


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """Return the differences with Holm's correction of their p values."""
    p_values = holm([row.p for row in found])
    return [replace(row, p_holm=p) for row, p in zip(found, p_values, strict=True)]


def signed_rank(values: Sequence[float]) -> tuple[float, float]:
    """Return the two-sided p value of Wilcoxon's signed-rank test, and the sum of signed ranks.

    Zeros are left out; only zeros give the p value 1.
    """
    stats = require("scipy.stats", "the paired test")
    values = [value for value in values if value]
    if not values:
        return 1.0, 0.0
    ranks = stats.rankdata([abs(value) for value in values])
    signed = sum(rank if value > 0 else -rank for rank, value in zip(ranks, values, strict=True))
    return float(stats.wilcoxon(values).pvalue), float(signed)


def interval(means: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the mean by Student's t; None for fewer than two values."""
    if len(means) < 2:
        return None
    stats = require("scipy.stats", "the interval over tasks")
    center, error = statistics.fmean(means), statistics.stdev(means) / len(means) ** 0.5
    half = float(stats.t.ppf(0.975, len(means) - 1)) * error
    return center - half, center + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values after Holm's correction, in the given order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
