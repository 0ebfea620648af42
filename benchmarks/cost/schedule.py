"""The schedule: the measurements, and the turns of the processes."""

import argparse
import contextlib
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from e3va.swin.presets import get_preset
from e3va.utils.errors import UserError

from . import growth, report
from .limits import DTYPES
from .methods import DEFAULT, METHODS, choose
from .models import ALONE, Spec, pick_framework
from .rows import with_ratios
from .worker import DoesNotFitError, Worker

GIB = 2**30
METHODS_HELP = (
    f"default: {', '.join(DEFAULT)}; also {', '.join(m for m in METHODS if m not in DEFAULT)}"
)


class _Parser(argparse.ArgumentParser):
    """A parser that reports wrong options like other mistakes of a user: one line, status 1."""

    def error(self, message: str) -> None:
        raise UserError(message)


def parse(doc: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: an option that cannot be measured.
    """
    parser = _Parser("cost", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--presets", "--preset", nargs="+", default=["swin_t"], metavar="PRESET")
    add("--methods", nargs="+", default=list(DEFAULT), metavar="METHOD", help=METHODS_HELP)
    add("--precision", nargs="+", default=["fp32"], metavar="TYPE", help="fp32, bf16, fp16")
    add(
        "--size", default="800x1216", metavar="HxW", help="size of the images; default: %(default)s"
    )
    add("--batch", default="1", metavar="N", help="images in a step; default: %(default)s")
    add(
        "--rounds",
        default="3",
        metavar="N",
        help="timed steps of each method; default: %(default)s",
    )
    add(
        "--rank",
        default="16",
        metavar="R",
        help="rank of LoRA and bottlenecks; default: %(default)s",
    )
    add(
        "--framework",
        metavar="FRAMEWORK",
        help="detectron2 or torchvision; default: the one that is installed",
    )
    add("--backbone", action="store_true", help="measure the backbone without neck and heads")
    add("--device", help="cpu, cuda, cuda:1; default: cuda where there is one")
    add("--cap", metavar="GIB", help="most GPU memory that a method may allocate")
    add("--growth", action="store_true", help="measure bytes over --sizes and --batches instead")
    add("--sizes", nargs="+", default=growth.SIZES, metavar="PX", help="sides, one image")
    add("--batches", nargs="+", default=growth.BATCHES, metavar="N", help="images of --side")
    add("--side", default=growth.SIDE, metavar="PX", help="default: %(default)s")
    add("--output", type=Path, default=Path("output/cost"), metavar="DIR")
    return _checked(parser.parse_args(arguments))


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    from e3va.cli.arguments import pick_device

    for preset in args.presets:
        get_preset(preset)
    for precision in args.precision:
        if precision not in DTYPES:
            raise UserError(f"--precision {precision}: expected some of {', '.join(DTYPES)}")
    args.height, args.width = _size(args.size)
    for name in ("batch", "rounds", "rank", "side"):
        setattr(args, name, _whole(name, getattr(args, name)))
    args.sizes = sorted({_whole("sizes", size) for size in args.sizes})
    args.batches = sorted({_whole("batches", count) for count in args.batches})
    # A backbone without heads needs no framework, but Detectron2's own Swin needs Detectron2.
    framework = args.framework
    if not args.backbone or framework:
        framework = pick_framework(framework)
    args.methods = choose(args.methods, framework or _any_framework())
    args.framework = ALONE if args.backbone else framework
    args.device = str(pick_device(args.device))
    args.cap = _cap(args.cap, torch.device(args.device))
    return args


def _any_framework() -> str:
    try:
        return pick_framework("detectron2")
    except UserError:
        return "torchvision"


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in pixels, as 800x1216")
    return int(found[1]), int(found[2])


def _whole(name: str, value: str | int) -> int:
    if not re.fullmatch(r"[1-9]\d*", str(value)):
        raise UserError(f"--{name} {value}: expected a whole number above 0")
    return int(value)


def _cap(text: str | None, device: torch.device) -> float | None:
    if text is None:
        return None
    if device.type != "cuda":
        raise UserError(f"--cap {text} needs CUDA: memory cannot be capped on {device}")
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0 < float(text) <= total:
        raise UserError(
            f"--cap {text}: expected GiB, above 0 and at most the {total:.1f} there are"
        )
    return float(text)


@dataclass(frozen=True)
class Setting:
    """The setting that the methods of one table share; a new table of it replaces the old one."""

    preset: str
    precision: str
    framework: str
    device: str
    height: int
    width: int
    batch: int
    cap: float | None


def settings(args: argparse.Namespace) -> list[Setting]:
    """Return a setting for each preset and precision."""
    rest = (args.framework, args.device, args.height, args.width, args.batch, args.cap)
    return [Setting(p, precision, *rest) for p in args.presets for precision in args.precision]


class Table:
    """The methods of one setting side by side.

    Args:
        setting: the setting.
        args: the command line.
        report_step: function that gets a description of each finished measurement.
    """

    def __init__(
        self, setting: Setting, args: argparse.Namespace, report_step: Callable[[str], None]
    ):
        self.setting, self.rounds, self.report_step = setting, args.rounds, report_step
        self.rank = args.rank
        self.rows: dict[str, dict[str, Any]] = {name: {"method": name} for name in args.methods}
        self.workers: dict[str, Worker] = {}
        self.limits: dict[str, float] | None = None

    @staticmethod
    def work(args: argparse.Namespace) -> int:
        """Return the number of measurements."""
        return len(args.methods) * (3 + args.rounds)

    def measure(self) -> dict[str, Any]:
        """Measure, and return an entry of cost.json."""
        with tempfile.TemporaryDirectory() as shared:
            try:
                self._run(shared)
            finally:
                for worker in self.workers.values():
                    worker.close()
        rows = with_ratios(list(self.rows.values()))
        return {**asdict(self.setting), "rank": self.rank, "limits": self.limits, "rows": rows}

    def _run(self, shared: str) -> None:
        for name in self.rows:
            spec = Spec(method=name, rank=self.rank, shared=shared, **asdict(self.setting))
            self.workers[name] = Worker(spec)
            self.workers[name].send("build")  # they start side by side, and later take turns
        for name in self.rows:
            self._take(name, "build", self.workers[name].receive)
        for command in ("count", "peak"):
            for name in self.rows:
                self._take(name, command, self._asking(name, command))
        if self.workers:
            with contextlib.suppress(DoesNotFitError):  # beside a large model, under --cap
                self.limits = next(iter(self.workers.values())).ask("limits")
        for number in range(1, self.rounds + 1):
            for name in self.rows:
                seconds = self.rows[name].setdefault("rounds", [])
                self._take(name, f"round {number}", self._asking(name, "round"), seconds.append)

    def _asking(self, name: str, command: str) -> Callable[[], Any]:
        return lambda: self.workers[name].ask(command)

    def _take(
        self,
        name: str,
        what: str,
        answer: Callable[[], Any],
        keep: Callable[[Any], None] | None = None,
    ) -> None:
        if name in self.workers:
            try:
                (keep or self.rows[name].update)(answer())
            except DoesNotFitError as error:
                self.workers.pop(name).close()
                self.rows[name] = {"method": name, "does_not_fit": str(error)}
        self.report_step(f"{name}, {what}")


def measure(args: argparse.Namespace) -> None:
    """Measure everything, and write it table by table.

    Raises:
        UserError: a mistake on the command line.
    """
    from e3va.torchvision.trainer import make_folder
    from e3va.utils.progress import Progress

    make_folder(args.output)
    kind = growth if args.growth else report
    kind.load(args.output)  # a foreign file is found before the work
    todo, machine = settings(args), report.machine(args.device)
    make = growth.Lines if args.growth else Table
    each, done = make.work(args), 0
    with Progress(0, each * len(todo), "piece", "cost") as progress:
        for setting in todo:
            progress.say(f"{setting.preset}, {setting.precision}: {', '.join(args.methods)}")

            def report_step(what: str) -> None:
                nonlocal done
                done += 1
                progress.step(done, {"last": what})

            table = make(setting, args, report_step).measure()
            kind.add(args.output, {**table, "machine": machine})
            progress.say(kind.text(table))


def main(doc: str, arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    try:
        args = parse(doc, arguments)
        measure(args)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the output folder has the complete tables", file=sys.stderr)
        return 130
    name = "growth" if args.growth else "cost"
    print(f"wrote {args.output}: {name}.md, {name}.json, {name}*.png")
    return 0
