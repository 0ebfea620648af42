"""The command: faults one after another, and the table of losses."""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from cost.report import machine, where

from e3va.torchvision.trainer import make_folder
from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError

from .outcome import Campaign, Outcome

FAULTS = ("kill", "disk", "twice", "data", "group", "fuzz", "endurance")
SHOWN = 3  # losses of a fault that the table shows


def parse(doc: str, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "faults", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tries; default: 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/faults"), metavar="DIR")
    args = parser.parse_args(arguments)
    if not 0 < args.scale <= 1:
        raise UserError(f"--scale {args.scale:g}: expected a share above 0 and at most 1")
    return args


def main(doc: str, arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if something was lost."""
    try:
        args = parse(doc, arguments)
        make_folder(args.output)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    about = {**machine("cpu"), "seed": args.seed, "scale": args.scale}
    outcomes: list[Outcome] = []
    try:
        for name in args.faults:
            for outcome in _tries(name, args):
                outcomes.append(outcome)
                write(args.output, about, outcomes)
    except KeyboardInterrupt:
        print(f"\nstopped; {args.output} has the tries before", file=sys.stderr)
        return 130
    print(
        f"\n{(args.output / 'faults.md').read_text()}\nwrote {args.output}: faults.md, faults.json"
    )
    return int(any(outcome.lost for outcome in outcomes))


def _tries(name: str, args: argparse.Namespace):
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    campaign = Campaign(folder, Random(f"{name} {args.seed}"), args.scale)
    began, number = time.monotonic(), 0
    try:
        for number, outcome in enumerate(
            importlib.import_module(f"faults.{name}").run(campaign), 1
        ):
            seconds = time.monotonic() - began
            shown = f"LOST: {outcome.lost}" if outcome.lost else outcome.note or "nothing lost"
            print(f"{seconds:6.0f} s, try {number}: {outcome.what}: {shown}", flush=True)
            yield outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(folder: Path, about: dict, outcomes: list[Outcome]) -> None:
    """Write faults.md and faults.json."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.what, []).append(outcome)
    lines = ["| fault | tries | losses | |", "| --- | ---: | ---: | --- |"]
    for what, own in rows.items():
        lost = [outcome.lost for outcome in own if outcome.lost]
        examples = "; ".join(text.replace("|", "/").replace("\n", " ") for text in lost[:SHOWN])
        lines.append(f"| {what} | {len(own)} | {len(lost)} | {examples} |")
    losses = sum(bool(outcome.lost) for outcome in outcomes)
    lines.append(f"| all | {len(outcomes)} | {losses} | |")
    command = f"python benchmarks/faults --seed {about['seed']} --scale {about['scale']:g}"
    with atomic_open(folder / "faults.md", "w") as file:
        file.write("\n".join(lines) + f"\n\nPrinted by `{command}`. {where({'machine': about})}\n")
    with atomic_open(folder / "faults.json", "w") as file:
        tries = [vars(outcome) for outcome in outcomes]
        json.dump({"machine": about, "tries": tries}, file, indent=1)
