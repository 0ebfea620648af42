"""The schedule: which runs, in which order, and on how many cores."""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from e3va.cli.arguments import pick_device, positive, whole
from e3va.torchvision.models import DEMO_TRUNK, read_trunk
from e3va.torchvision.trainer import MODEL, SUMMARY
from e3va.utils.atomic import atomic_open, make_folder
from e3va.utils.errors import UserError
from e3va.utils.progress import Progress
from e3va.utils.training import PRECISIONS
from e3va.weights.origin import fingerprint

from . import comparisons, report, runs
from .candidates import ALL, CANDIDATES
from .comparisons import COMPARISONS, Plan
from .methods import COMPARED
from .pictures import pictured
from .runs import Run, validation
from .tasks import SOURCE_HELP, TASKS, Sources, available, draw

SEEDS, FRONT_SEEDS = 5, 2


def parse(doc: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="accuracy", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    for name, text in SOURCE_HELP.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all with data")
    parser.add_argument("--methods", nargs="+", choices=ALL, help=f"default: {', '.join(COMPARED)}")
    parser.add_argument(
        "--comparisons",
        nargs="+",
        choices=COMPARISONS,
        help="at equal steps, at equal seconds, the front of ranks (default: all)",
    )
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="compare forms of the highway instead, by validation scores at equal steps",
    )
    parser.add_argument("--trunk", default=DEMO_TRUNK, help="pretrained Swin weights")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=positive,
        metavar="RATE",
        help="try exactly these (default: each method's own, and more while the best is at an end)",
    )
    parser.add_argument(
        "--rates-of",
        type=Path,
        metavar="FILE",
        help="results.json of an earlier call: use its learning rates, without a search",
    )
    parser.add_argument("--seeds", type=whole(1), default=SEEDS, metavar="N")
    parser.add_argument(
        "--front-seeds",
        type=whole(1),
        default=FRONT_SEEDS,
        metavar="N",
        help="seeds of the front of ranks",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of all trainings")
    parser.add_argument(
        "--times",
        type=whole(1),
        default=1,
        metavar="N",
        help="so many times the steps of each task (default: 1; 10 for a large --trunk on a GPU)",
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

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._pool is not None:
            if kind is not None:  # whatever still runs would take minutes
                for process in multiprocessing.active_children():
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.output / "runs" / run.name

    def done(self, run: Run, result: str) -> bool:
        """Return whether a run has a result, :data:`SUMMARY` or :data:`runs.TEST`."""
        return (self.folder(run) / result).is_file()

    def summary(self, run: Run) -> dict:
        """Return what a training measured."""
        return json.loads((self.folder(run) / SUMMARY).read_text())

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
        todo = [run for run in dict.fromkeys(todo) if not self.done(run, result)]
        if not todo:
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, context, initializer=_start)
        with Progress(0, len(todo), "run", what) as progress:
            waiting: dict[Future, Run] = {}
            for run in todo:
                arguments = (function, run, self.folder(run), self.sources, self.device)
                waiting[self._pool.submit(_work, *arguments)] = run
            for count, future in enumerate(as_completed(waiting), 1):
                try:
                    future.result()
                except BrokenProcessPool:
                    raise UserError(
                        f"a process ended during {waiting[future].name} or beside it (out of "
                        "memory?): run the same command again to continue, or give fewer --jobs"
                    ) from None
                progress.step(count, {"last": waiting[future].name})

    def train(self, todo: list[Run], what: str) -> None:
        """Train the runs that are compared.

        Raises:
            UserError: a run fails, or its loss diverges.
        """
        self.do(runs.train, SUMMARY, todo, what)
        for run in todo:
            if "diverged" in self.summary(run):
                raise UserError(
                    f"{run.name}: the loss diverged at the learning rate of the comparison; give "
                    "lower --rates"
                )

    def train_and_test(self, plan: Plan, kept: set[Run], what: str) -> None:
        """Train and test the runs of a plan; of the models, only those of ``kept`` stay."""
        todo = [run for row in plan.values() for run in row]
        for run in todo:
            needed = run in kept or not self.done(run, runs.TEST)
            if self.done(run, SUMMARY) and needed and not self.done(run, MODEL):
                shutil.rmtree(self.folder(run))  # a call with other options dropped the model
        self.train(todo, f"{what}: training")
        self.do(runs.test, runs.TEST, todo, f"{what}: test")
        for run in set(todo) - kept:
            runs.drop_model(self.folder(run))

    def score(self, run: Run) -> float:
        """Return the last validation score of a run."""
        return validation(run, self.folder(run))[-1][1]


def _start() -> None:
    torch.set_num_threads(1)  # the results do not depend on the machine's cores
    for number in (signal.SIGINT, signal.SIGTERM):  # during a training, the trainer's own handlers
        signal.signal(number, lambda *_: os._exit(130))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)  # it was killed: a second command must not meet this process in a folder


def _work(function: Callable, *arguments: object) -> None:
    try:
        function(*arguments)
    except KeyboardInterrupt:
        os._exit(130)  # a process that returns would start the next run


def compare(args: argparse.Namespace) -> None:
    """Run everything and write the report.

    Raises:
        UserError: a source of data is missing, or a run fails.
    """
    args.device = str(pick_device(args.device))
    sources = Sources(args.output / "drawn", **{name: getattr(args, name) for name in SOURCE_HELP})
    tasks = available(sources)
    for task in args.tasks or []:
        if task not in tasks:
            raise UserError(f"the task {task!r} needs --{TASKS[task].source}")
    args.tasks = args.tasks or [
        task for task in tasks if not args.candidates or TASKS[task].metric == "mIoU"
    ]
    args.methods = args.methods or list(CANDIDATES if args.candidates else COMPARED)
    args.comparisons = comparisons.choose(args)
    first = comparisons.search(args)
    state = read_trunk(args.trunk)[0]
    make_folder(args.output)
    check_setting(args, fingerprint(state))
    draw(sources.drawn)
    jobs = args.jobs or (len(_cores()) if args.device == "cpu" else 1)
    clock = Clock(args.output / "hours.json")
    try:
        with Schedule(args.output, sources, args.device, jobs) as schedule:
            _run_all(schedule, args, first, clock)
    finally:
        clock.save()


def _run_all(schedule: Schedule, args: argparse.Namespace, first: Plan, clock: "Clock") -> None:
    grid, wider = {}, first
    while wider != grid:
        grid = wider
        todo = [run for row in grid.values() for run in row if len(row) > 1]
        schedule.do(runs.train, SUMMARY, todo, "search")
        best = comparisons.best_rates(grid, schedule.score)
        wider = grid if args.rates or args.rates_of else comparisons.widened(grid, best)
    for (task, method), row in grid.items():
        for run in row:
            if run.rate != best[TASKS[task].kind, method]:
                runs.drop_model(schedule.folder(run))
    found = report.Report(schedule, args, grid, best)
    equal_steps = comparisons.at_equal_steps(args, best)
    if args.candidates:  # chosen by validation; the test data are for the choice that was made
        todo = [run for row in equal_steps.values() for run in row]
        schedule.train(todo, "candidates")
        found.add("steps", equal_steps)
        found.write(clock.hours())
        return
    kept = pictured(equal_steps)
    for name in args.comparisons:  # equal steps come first: the others need their results
        if name == "steps":
            plan = equal_steps
        elif name == "seconds":
            plan = comparisons.at_equal_seconds(schedule, equal_steps)
        else:
            plan = comparisons.front(equal_steps, args.front_seeds)
        schedule.train_and_test(plan, kept, COMPARISONS[name])
        found.add(name, plan)
        found.write(clock.hours())


def check_setting(args: argparse.Namespace, weights: str) -> None:
    """Check that the output folder holds no runs with another trunk, precision or ``--times``.

    Raises:
        UserError: the folder holds such runs.
    """
    path = args.output / "setting.json"
    setting = {"trunk": weights, "times": args.times, "precision": args.precision}
    before = json.loads(path.read_text()) if path.is_file() else setting
    other = [name for name in setting if before.get(name) != setting[name]]
    if other:
        names = " and ".join(f"--{name}" for name in other)
        raise UserError(
            f"{args.output} holds runs with another {names} (see {path}): give another --output, "
            f"or the same {names}"
        )
    with atomic_open(path, "w") as file:
        json.dump(setting, file)


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {*range(os.cpu_count())}


class Clock:
    """The hours that all calls with an output folder took.

    Args:
        path: file that holds the hours of earlier calls.
    """

    def __init__(self, path: Path):
        self.path, self._began = path, time.monotonic()
        self._before = json.loads(path.read_text()) if path.is_file() else 0.0

    def hours(self) -> float:
        """Return the hours until now."""
        return self._before + (time.monotonic() - self._began) / 3600

    def save(self) -> None:
        """Write the hours until now."""
        with atomic_open(self.path, "w") as file:
            json.dump(self.hours(), file)


def main(doc: str) -> int:
    """Run the command and return its exit status."""
    args = parse(doc)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        compare(args)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"wrote {args.output}: results.md, results.json and pictures")
    return 0
