"""The three comparisons: which runs each of them needs."""

import json
import statistics
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError

from .candidates import ALL
from .methods import FRONT
from .runs import Run

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
    "streets": 300,
    "cells": 400,
    "nuclei": 600,
}
MOST = 4  # times the steps of full fine-tuning
Plan = dict[tuple[str, str], list[Run]]  # (task, method) → the runs of all seeds


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
    """Return the runs that choose a learning rate, by task and method."""
    grid = {}
    for task in args.tasks:
        first = Run(
            task,
            method="",
            rate=1.0,
            seed=0,
            steps=STEPS[task] * (10 if args.large else 1),
            trunk=args.trunk,
            precision=args.precision,
        )
        for method in args.methods:
            rates = args.rates if ALL[method].searched else [1.0]
            grid[task, method] = [replace(first, method=method, rate=rate) for rate in rates]
    return grid


def at_equal_steps(best: Mapping[tuple[str, str], Run], seeds: int) -> Plan:
    """Return the chosen runs with all seeds."""
    return {key: _seeds(run, seeds) for key, run in best.items()}


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


def front(best: Mapping[tuple[str, str], Run], seeds: int) -> Plan:
    """Return the runs of the front: methods at several ranks, full and frozen.

    Each rank trains with the learning rate that was chosen for the method's own rank.
    """
    plan = {}
    for (task, method), run in best.items():
        if method in (*FRONT, "full", "frozen"):
            for name in (method, *FRONT.get(method, ())):
                plan[task, name] = _seeds(replace(run, method=name), seeds)
    return plan
