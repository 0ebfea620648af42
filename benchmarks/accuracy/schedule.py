"""The schedule: which runs, in which order, and on how many cores."""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from e3va.cli.arguments import pick_device, positive, whole
from e3va.torchvision.models import DEMO_TRUNK, read_trunk
from e3va.torchvision.trainer import MODEL, SUMMARY, make_folder
from e3va.utils.errors import UserError
from e3va.utils.progress import Progress

from . import report, runs
from .candidates import ALL, CANDIDATES
from .methods import METHODS
from .runs import Run, validation
from .tasks import TASKS, Sources, available, draw

RATES = (0.5, 2.0, 8.0)
SEEDS = 3
STEPS = {"things": 200, "land": 240, "nuts": 120, "nuts labels": 120, "streets": 300}


def parse(doc: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="accuracy", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    parser.add_argument("--photos", type=Path, help="few photographs, with polygons and label maps")
    parser.add_argument("--streets", type=Path, help="street scenes with label maps")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all with data")
    parser.add_argument("--methods", nargs="+", choices=ALL, help="default: all")
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="compare forms of the highway instead",
    )
    parser.add_argument("--trunk", default=DEMO_TRUNK, help="pretrained Swin weights")
    parser.add_argument("--rates", nargs="+", type=positive, default=list(RATES), metavar="RATE")
    parser.add_argument("--seeds", type=whole(1), default=SEEDS, metavar="N")
    parser.add_argument(
        "--large", action="store_true", help="ten times the steps, for a GPU and a large --trunk"
    )
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument(
        "--jobs",
        type=whole(1),
        help="runs side by side, one thread each (default: one for each core)",
    )
    return parser.parse_args()


class Schedule:
    """The runs and their folders; a pool of processes does several runs side by side.

    Args:
        output: folder of all results.
        sources: places of the data.
        device: device of all runs.
        jobs: number of runs side by side.
    """

    def __init__(self, output: Path, sources: Sources, device: str, jobs: int):
        self.output, self.sources, self.device, self.jobs = output, sources, device, jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Schedule":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.output / "runs" / run.name

    def do(self, function: Callable, result: str, todo: list[Run], what: str) -> None:
        """Call ``function(run, folder, sources, device)`` for each run, in other processes.

        Args:
            function: function of :mod:`accuracy.runs`.
            result: file in a run's folder that the function writes last; runs that have it are
                skipped.
            todo: the runs.
            what: title of the progress display.

        Raises:
            UserError: a run fails; the other runs end.
        """
        todo = [run for run in dict.fromkeys(todo) if not (self.folder(run) / result).is_file()]
        if not todo:
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, context, initializer=_start)
        with Progress(0, len(todo), "run", what) as progress:
            waiting: dict[Future, Run] = {}
            for run in todo:
                arguments = (run, self.folder(run), self.sources, self.device)
                waiting[self._pool.submit(function, *arguments)] = run
            for count, future in enumerate(as_completed(waiting), 1):
                future.result()
                progress.step(count, {"last": waiting[future].name})

    def best(self, candidates: list[Run]) -> Run:
        """Return the run with the best last validation score."""
        return max(candidates, key=lambda run: validation(run, self.folder(run))[-1][1])


def _start() -> None:
    torch.set_num_threads(1)  # the results do not depend on the machine's cores
    signal.signal(signal.SIGINT, signal.default_int_handler)


def search(tasks, methods, args: argparse.Namespace) -> dict[tuple[str, str], list[Run]]:
    """Return the runs that choose a learning rate, by task and method."""
    grid = {}
    for task in tasks:
        steps = STEPS[task] * (10 if args.large else 1)
        for method in methods:
            rates = args.rates if ALL[method].searched else [1.0]
            grid[task, method] = [Run(task, method, r, 0, steps, args.trunk) for r in rates]
    return grid


def compare(args: argparse.Namespace) -> None:
    """Run everything and write the report.

    Raises:
        UserError: a source of data is missing, or a run fails.
    """
    args.device = str(pick_device(args.device))
    sources = Sources(args.output / "drawn", args.photos, args.streets)
    tasks = available(sources)
    for task in args.tasks or []:
        if task not in tasks:
            raise UserError(f"the task {task!r} needs --{TASKS[task].source}")
    tasks = args.tasks or [t for t in tasks if not args.candidates or TASKS[t].metric == "mIoU"]
    args.methods = args.methods or list(CANDIDATES if args.candidates else METHODS)
    read_trunk(args.trunk)
    make_folder(args.output)
    check_setting(args)
    draw(sources.drawn)
    jobs = args.jobs or (len(_cores()) if args.device == "cpu" else 1)
    with Schedule(args.output, sources, args.device, jobs) as schedule:
        _run_all(schedule, search(tasks, args.methods, args), args)


def _run_all(schedule: Schedule, grid: dict[tuple[str, str], list[Run]], args) -> None:
    began = time.monotonic()
    everything = [run for row in grid.values() for run in row]
    schedule.do(runs.train, SUMMARY, everything, "search")
    final = {}
    for key, candidates in grid.items():
        best = schedule.best(candidates)
        for run in set(candidates) - {best}:  # it is large, and nothing reads it again
            (schedule.folder(run) / MODEL).unlink(missing_ok=True)
        final[key] = [Run(**{**vars(best), "seed": seed}) for seed in range(args.seeds)]
    everything = [run for row in final.values() for run in row]
    schedule.do(runs.train, SUMMARY, everything, "other seeds")
    if not args.candidates:  # the test data are read once, after all choices
        schedule.do(runs.test, runs.TEST, everything, "test")
    took = _add_hours(args.output / "hours.json", time.monotonic() - began)
    report.write(schedule, grid, final, args, took)


def check_setting(args: argparse.Namespace) -> None:
    """Check that the output folder holds no runs with another trunk or number of steps.

    Raises:
        UserError: the folder holds such runs.
    """
    path = args.output / "setting.json"
    setting = {"trunk": args.trunk, "large": args.large}
    if path.is_file() and json.loads(path.read_text()) != setting:
        raise UserError(
            f"{args.output} holds runs with {path.read_text()}: give another --output, or the same "
            "--trunk and --large"
        )
    path.write_text(json.dumps(setting))


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {*range(os.cpu_count())}


def _add_hours(path: Path, seconds: float) -> float:
    """Add to the hours that earlier calls took, and return the sum."""
    before = json.loads(path.read_text()) if path.is_file() else 0.0
    path.write_text(json.dumps(before + seconds / 3600))
    return before + seconds / 3600


def main(doc: str) -> int:
    """Run the command and return its exit status."""
    args = parse(doc)
    try:
        compare(args)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    print(f"wrote {args.output}: results.md, results.json, scores.png, curves.png, and pictures")
    return 0
