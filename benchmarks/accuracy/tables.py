"""The Markdown tables of the report.

``results`` are those of one comparison: task → method → measurements, see
:func:`accuracy.report.measure`.
"""

import statistics
from collections.abc import Mapping, Sequence

from .comparisons import COMPARISONS
from .methods import METHODS
from .paired import Difference
from .tasks import TASKS

Results = Mapping[str, Mapping[str, Mapping]]
FLAT = 0.02  # share of the score that a flat curve gains at most in the last quarter


def titled(row: Mapping) -> str:
    """Return a method's title, with its rank if it has one."""
    return row["title"] + (f", rank {row['rank']}" if row["rank"] else "")


def spread(values: Sequence[float]) -> str:
    """Format the mean and the standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def full_means(results: Results) -> dict[str, float]:
    """Return the mean score of full fine-tuning by task, without tasks where it is zero."""
    means = {t: statistics.fmean(row["full"]["scores"]) for t, row in results.items()}
    return {task: mean for task, mean in means.items() if mean > 0}


def of_full(results: Results, full: Mapping[str, float]) -> dict[str, list[float]]:
    """Return method → for each seed, the mean over tasks of its score in per cent of full's mean.

    Args:
        results: results of a comparison.
        full: mean score of full fine-tuning by task; other tasks do not count.
    """
    return {
        method: [
            statistics.fmean(
                100 * results[task][method]["scores"][seed] / full[task] for task in full
            )
            for seed in range(len(found["scores"]))
        ]
        for method, found in next(iter(results.values())).items()
    }


def over_full(results: Results, method: str, key: str) -> float:
    """Return the mean over tasks of a measurement relative to full fine-tuning."""
    return statistics.fmean(row[method][key] / row["full"][key] for row in results.values())


def summary_table(results: Results, more_steps: bool = False) -> str:
    """Return a table: a row for each method, a column for each task, the best method first.

    With ``more_steps`` it has the number of steps relative to full fine-tuning. Without full
    fine-tuning it has the plain mean over the tasks, and nothing relative.
    """
    tasks, methods = list(results), list(next(iter(results.values())))
    full = full_means(results) if "full" in methods else {}
    # Relative to a score of 100 it is the plain mean.
    means = of_full(results, full or dict.fromkeys(tasks, 100.0))
    keys = {"steps": "steps"} if more_steps else {}
    keys |= {"kept": "kept_for_backward_bytes", "time": "seconds"}
    head = ["", *tasks, "% of full" if full else "mean", "trained", *(keys if full else ())]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in sorted(means, key=lambda m: -statistics.fmean(means[m])):
        rows = [results[task][method] for task in tasks]
        cells = [titled(rows[0]), *(spread(row["scores"]) for row in rows)]
        cells += [spread(means[method]), f"{rows[0]['share_of_backbone']:.2%}"]
        cells += [
            f"{over_full(results, method, key):.2f}" for key in (keys.values() if full else ())
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paired_table(found: Sequence[Difference]) -> str:
    """Return a table of paired differences, method minus the other, and their verdicts."""
    lines = [
        "| | method | against | difference | 95% interval | tasks ahead | p | p (Holm) | result |",
        "|---" * 9 + "|",
    ]
    for row in found:
        ends = "" if row.low is None else f"{row.low:+.1f} to {row.high:+.1f}"
        cells = [COMPARISONS[row.comparison], METHODS[row.method].title, METHODS[row.other].title]
        cells += [f"{row.mean:+.1f}", ends, f"{row.tasks_ahead} of {row.tasks}"]
        bold = "**" if row.verdict in ("ahead", "behind") else ""
        cells += [f"{row.p:.2g}", f"{row.p_holm:.2g}", f"{bold}{row.verdict}{bold}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flatness(results: Results) -> dict[str, dict]:
    """Return, for each task, what full fine-tuning gained in the last quarter of its steps.

    The gain is the mean over seeds of the last validation score minus the one that is nearest to
    three quarters of the steps. A curve is flat if the gain is at most ``FLAT`` of the last score,
    or at most the standard deviation of the seeds' last scores.
    """
    found = {}
    for task, row in results.items():
        steps, curves = row["full"]["steps"], row["full"]["curves"]
        before = [min(c[:-1], key=lambda p: abs(p[0] - 0.75 * steps))[1] for c in curves]
        last = [curve[-1][1] for curve in curves]
        deviation = statistics.stdev(last) if len(last) > 1 else None
        gain = statistics.fmean(last) - statistics.fmean(before)
        found[task] = {
            "steps": steps,
            "before": statistics.fmean(before),
            "last": statistics.fmean(last),
            "gain": gain,
            "deviation": deviation,
            "flat": gain <= max(FLAT * statistics.fmean(last), deviation or 0.0),
        }
    return found


def flatness_table(found: Mapping[str, Mapping]) -> str:
    """Return a table of :func:`flatness`."""
    head = ["task", "steps", "at 3/4", "at the end", "gain", "deviation of the seeds", "flat"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, row in found.items():
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.1f}"
        cells = [task, f"{row['steps']}", f"{row['before']:.1f}", f"{row['last']:.1f}"]
        cells += [f"{row['gain']:+.1f}", deviation, "yes" if row["flat"] else "**no**"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rates_table(found: Mapping[str, Mapping], titles: Mapping[str, str]) -> str:
    """Return a table of the search's validation scores; the scores of the chosen rate are bold.

    Args:
        found: method → ``rates``, the chosen ones by kind of task, and ``search``, task → rate →
            score.
        titles: titles of the methods.
    """
    searches = [scores for one in found.values() for scores in one["search"].values()]
    rates = sorted({rate for scores in searches for rate in scores}, key=float)
    lines = [f"| method | task | {' | '.join(rates)} |", "|---" * (2 + len(rates)) + "|"]
    for method, one in found.items():
        for task, scores in one["search"].items():
            cells, chosen = [], one["rates"][TASKS[task].kind]
            for rate in rates:
                text = f"{scores[rate]:.1f}" if rate in scores else ""
                cells.append(f"**{text}**" if text and float(rate) == chosen else text)
            lines.append(f"| {titles[method]} | {task} | {' | '.join(cells)} |")
    return "\n".join(lines)
