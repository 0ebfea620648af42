"""The three comparisons: which runs each of them needs."""

import json
import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError, brief

from .candidates import ALL
from .methods import FRONT
from .runs import Run
from .tasks import TASKS

if TYPE_CHECKING:
    from .schedule import Schedule

COMPARISONS = {
    "steps": "at equal steps",
    "seconds": "at equal seconds",
    "front": "front of ranks",
}
STEPS = {
    "things": 300,
    "land": 300,
    "nuts": 300,
    "nuts labels": 300,
    "streets": 600,
    "cells": 400,
    "nuclei": 600,
}
# The tasks of the search: a drawn and a real one of each kind.
SEARCHED = ("land", "nuts labels", "things", "cells")
RUNG = 4.0  # quotient of neighboring learning rates in the search
MOST_RATES = 7
MOST = 4  # times the steps of full fine-tuning
Plan = dict[tuple[str, str], list[Run]]  # (task, method) → the runs of all seeds
Rates = Mapping[tuple[str, str], float]  # (kind of task, method) → learning rate


def choose(args: Namespace) -> list[str]:
    """Return the comparisons to make, in order.

    Raises:
        UserError: a comparison was given that the methods do not allow.
    """
    possible = ["steps"]
    if "full" in args.methods and not args.candidates:
        possible.append("seconds")
        possible += ["front"] * any(base in args.methods for base in FRONT)
    for name in args.comparisons or []:
        if name not in possible:
            raise UserError(
                f"--comparisons {name} with the methods {', '.join(args.methods)}: expected full "
                f"and, for the front, one of {', '.join(FRONT)}, without --candidates; change "
                "--methods, or leave it out"
            )
    # The others start from the results at equal steps.
    return [name for name in possible if name in {"steps", *(args.comparisons or possible)}]


def search(args: Namespace) -> Plan:
    """Return the runs with which the search for a learning rate begins, by task and method.

    It is on the tasks of ``SEARCHED``, or on all tasks of a kind if none of them is there.

    Raises:
        UserError: ``--rates-of`` names a file without the rate of a method, or ``--rates`` was
            given too.
    """
    known = _known_rates(args)
    covered = {TASKS[task].kind for task in args.tasks if task in SEARCHED}
    grid = {}
    for task in args.tasks:
        if TASKS[task].kind in covered and task not in SEARCHED:
            continue
        for method in args.methods:
            rates = known.get((TASKS[task].kind, method), ALL[method].rates)
            rates = args.rates if args.rates and len(rates) > 1 else rates
            grid[task, method] = [_first_run(args, task, method, rate) for rate in rates]
    return grid


def _first_run(args: Namespace, task: str, method: str, rate: float) -> Run:
    steps = STEPS[task] * args.times
    return Run(task, method, rate, 0, steps, trunk=args.trunk, precision=args.precision)


def _known_rates(args: Namespace) -> dict[tuple[str, str], Sequence[float]]:
    if args.rates_of is None:
        return {}
    if args.rates:
        raise UserError("--rates and --rates-of: expected one of the two")
    try:
        found = json.loads(args.rates_of.read_text())["rates"]
        kinds = dict.fromkeys(TASKS[task].kind for task in args.tasks)
        rates = {
            (kind, method): (float(found[method]["rates"][kind]),)
            for kind in kinds
            for method in args.methods
        }
        for (kind, method), (rate,) in rates.items():
            if not 0 < rate < math.inf:
                raise ValueError(f"the rate of {method} on {kind} is {rate}")
        return rates
    except (OSError, ValueError, TypeError, LookupError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else brief(error)
        raise UserError(
            f"--rates-of {args.rates_of} cannot be used ({reason}): expected the results.json of a "
            "call with the same methods and tasks of the same kinds"
        ) from None


def widened(grid: Plan, best: Rates) -> Plan:
    """Return the grid with one more learning rate for methods whose best one is at an end.

    Such a method would be compared below what it can reach.
    """
    wider = {}
    for key, row in grid.items():
        rates, rate = sorted(run.rate for run in row), best[TASKS[key[0]].kind, key[1]]
        more = []
        if 1 < len(rates) < MOST_RATES and rate in (rates[0], rates[-1]):
            more = [replace(row[0], rate=rate * RUNG if rate == rates[-1] else rate / RUNG)]
        wider[key] = [*row, *more]
    return wider


def best_rates(grid: Plan, score: Callable[[Run], float]) -> dict[tuple[str, str], float]:
    """Return each method's best learning rate, which is the same for all tasks of a kind.

    It has the best mean score over the tasks, relative to the method's best score of each task.

    Args:
        grid: the runs of the search.
        score: function that returns a run's validation score.
    """
    relative: dict[tuple[str, str], dict[float, list[float]]] = {}
    for (task, method), row in grid.items():
        # A single rate needs no search, so its run is not trained yet.
        scores = [score(run) for run in row] if len(row) > 1 else [1.0]
        of_kind = relative.setdefault((TASKS[task].kind, method), {})
        for run, found in zip(row, scores, strict=True):
            share = found / (max(scores) or 1.0)
            of_kind.setdefault(run.rate, []).append(share)
    return {key: max(of, key=lambda rate: sum(of[rate])) for key, of in relative.items()}


def at_equal_steps(args: Namespace, rates: Rates) -> Plan:
    """Return the runs of all tasks, methods and seeds.

    Args:
        args: options of the command.
        rates: learning rate of each method by kind of task.
    """
    return {
        (task, method): _seeds(
            _first_run(args, task, method, rates[TASKS[task].kind, method]), args.seeds
        )
        for task in args.tasks
        for method in args.methods
    }


def _seeds(run: Run, count: int) -> list[Run]:
    return [replace(run, seed=seed) for seed in range(count)]


def at_equal_seconds(schedule: "Schedule", equal_steps: Plan) -> Plan:
    """Return the same runs with as many steps as fit in the seconds of full fine-tuning.

    The file ``seconds.json`` keeps the seconds of a step that the first call found: otherwise a
    later call with more seeds would change the steps of runs that are finished.
    """
    path = schedule.output / "seconds.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    plan = {}
    for (task, method), row in equal_steps.items():
        for name in ("full", method):
            if name not in known.setdefault(task, {}):
                known[task][name] = seconds_a_step(schedule, equal_steps[task, name])
        steps = equal_seconds_steps(row[0].steps, known[task]["full"], known[task][method])
        plan[task, method] = [replace(run, steps=steps) for run in row]
    with atomic_open(path, "w") as file:
        json.dump(known, file, indent=1)
    return plan


def seconds_a_step(schedule: "Schedule", row: list[Run]) -> float:
    """Return the median of the runs' seconds for one step."""
    return statistics.median(schedule.summary(run)["seconds_a_step"] for run in row)


def equal_seconds_steps(steps: int, full: float, own: float) -> int:
    """Return the number of steps that take as long as ``steps`` of full fine-tuning.

    Args:
        steps: steps of full fine-tuning.
        full: seconds of one of its steps.
        own: seconds of a step of the method; it gets at most ``MOST`` times the steps.
    """
    return max(1, min(MOST * steps, round(steps * full / own)))


def front(equal_steps: Plan, seeds: int) -> Plan:
    """Return the runs of the front: methods at several ranks, full and frozen.

    Every rank trains with the learning rate of the method's own rank.
    """
    plan = {}
    for (task, method), (run, *_) in equal_steps.items():
        if method in (*FRONT, "full", "frozen"):
            for name in (method, *FRONT.get(method, ())):
                plan[task, name] = _seeds(replace(run, method=name), seeds)
    return plan
