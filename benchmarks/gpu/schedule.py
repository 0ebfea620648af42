"""The command: parts one after another, each in a process of its own with a time limit."""

import argparse
import contextlib
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from cost.report import machine

from e3va.cli.arguments import pick_device, whole
from e3va.torchvision.trainer import make_folder
from e3va.utils.errors import UserError

from . import report
from .part import Part

PARTS = ("correctness", "steps", "capacity", "forward", "recipes", "predict")
GRACE = 15  # seconds after a part's time, for a measurement that has begun


def parse(doc: str, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        UserError: a device that is not there, or ``--device cpu`` without ``--short``.
    """
    parser = argparse.ArgumentParser(
        "gpu", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --short")
    parser.add_argument("--short", action="store_true", help="everything small")
    parser.add_argument("--seconds", type=whole(1), default=90, help="for each part; default: 90")
    parser.add_argument("--output", type=Path, default=Path("output/gpu"), metavar="DIR")
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)  # in a part's process
    args = parser.parse_args(arguments)
    device = pick_device(args.device)
    if device.type == "cpu" and not args.short:
        raise UserError("--device cpu: expected a CUDA card; add --short to try the parts in small")
    return args


def run_part(args: argparse.Namespace) -> None:
    """Run one part in this process."""
    logging.disable(logging.WARNING)  # that the trunks are random, and the like
    until = time.monotonic() + args.seconds
    part = Part(pick_device(args.device), args.short, _rows_of(args, args.run), until)
    importlib.import_module(f"gpu.{args.run}").run(part)


def start(name: str, args: argparse.Namespace) -> str:
    """Run one part in a process; return how it ended."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("__main__.py"))]
    command += ["--run", name, "--device", args.device, "--output", str(args.output)]
    command += ["--seconds", str(args.seconds), *["--short"] * args.short]
    began = time.monotonic()
    quiet = os.environ | {"KINETO_LOG_LEVEL": "99"}  # the profiler would print to stderr
    process = subprocess.Popen(command, start_new_session=True, env=quiet)
    try:
        status = process.wait(args.seconds + GRACE)
        took = f"{time.monotonic() - began:.0f} s"
        return f"done in {took}" if status == 0 else f"ended with status {status} after {took}"
    except subprocess.TimeoutExpired:
        return f"stopped after {args.seconds + GRACE} s"
    finally:  # the part's own processes too
        _kill(process)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _rows_of(args: argparse.Namespace, name: str) -> Path:
    return args.output / f"{name}.jsonl"


def read_rows(path: Path) -> list[dict]:
    """Return the rows that a part wrote; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def main(doc: str, arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if a check failed or a part did not end."""
    try:
        args = parse(doc, arguments)
        make_folder(args.output)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    if args.run:
        run_part(args)
        return 0
    about = machine(args.device) | {"short": args.short}
    if torch.device(args.device).type == "cuda":
        about["memory_gib"] = torch.cuda.get_device_properties(args.device).total_memory / 2**30
    for name in PARTS:
        _rows_of(args, name).unlink(missing_ok=True)
    ends, failed = {}, False
    try:
        for number, name in enumerate(args.parts, 1):
            print(f"\n[{number}/{len(args.parts)}] {name}", flush=True)
            ends[name] = start(name, args)
            rows = [row for part in ends for row in read_rows(_rows_of(args, part))]
            failed = report.write(args.output, about, ends, rows)
    except KeyboardInterrupt:
        print(f"\nstopped; {args.output} has the parts that ended", file=sys.stderr)
        return 130
    print((args.output / "gpu.md").read_text(encoding="utf-8"))
    print(f"wrote {args.output}: gpu.md, gpu.json, *.png")
    return int(failed)
