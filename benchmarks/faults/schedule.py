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

from .outcome import Campaign
from .runs import installed

FAULTS = ("kill", "disk", "twice", "data", "group", "fuzz", "endurance")
SHOWN = 3  # losses of a fault that the table shows


def parse(doc: str, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "faults", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, metavar="FAULT")
    parser.add_argument(
        "--frameworks",
        nargs="+",
        choices=installed(),
        default=installed(),
        metavar="NAME",
        help=f"default: {', '.join(installed())}",
    )
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
    done: list[dict] = []
    try:
        kept = _kept(args)
        for name in args.faults:
            for outcome in _tries(name, args):
                done.append({"fault": name, "commit": about["commit"], **vars(outcome)})
                write(args.output, about, kept + done)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.output} has the tries before", file=sys.stderr)
        return 130
    table = (args.output / "faults.md").read_text()
    print(f"\n{table}\nwrote {args.output}: faults.md, faults.json")
    return int(any(one["lost"] for one in done))


def _kept(args: argparse.Namespace) -> list[dict]:
    """Return the tries of other faults that an earlier call with the same output made.

    Raises:
        UserError: they have another seed or scale, or the file is not of this benchmark.
    """
    path = args.output / "faults.json"
    if not path.is_file():
        return []
    try:
        before = json.loads(path.read_text())
        same = all(before["machine"][key] == getattr(args, key) for key in ("seed", "scale"))
        kept = [one for one in before["tries"] if one["fault"] not in args.faults]
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"{path} was not written by this benchmark: give another --output"
        ) from None
    if kept and not same:
        raise UserError(
            f"{path} has tries with another --seed or --scale: give the same, or another --output"
        )
    return kept


def _tries(name: str, args: argparse.Namespace):
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    campaign = Campaign(folder, Random(f"{name} {args.seed}"), args.scale, args.frameworks)
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


def write(folder: Path, about: dict, tries: list[dict]) -> None:
    """Write faults.md and faults.json."""
    tries = sorted(tries, key=lambda one: FAULTS.index(one["fault"]))
    rows: dict[str, list[dict]] = {}
    for one in tries:
        rows.setdefault(one["what"], []).append(one)
    lines = ["| fault | tries | losses | |", "| --- | ---: | ---: | --- |"]
    for what, own in rows.items():
        lost = [one["lost"] for one in own if one["lost"]]
        examples = "; ".join(text.replace("|", "/").replace("\n", " ") for text in lost[:SHOWN])
        lines.append(f"| {what} | {len(own)} | {len(lost)} | {examples} |")
    losses = sum(bool(one["lost"]) for one in tries)
    lines.append(f"| all | {len(tries)} | {losses} | |")
    command = f"python benchmarks/faults --seed {about['seed']} --scale {about['scale']:g}"
    commits = ", ".join(dict.fromkeys(one["commit"] for one in tries))
    text = f"Printed by `{command}`. {where({'machine': {**about, 'commit': commits}})}"
    with atomic_open(folder / "faults.md", "w") as file:
        file.write("\n".join(lines) + f"\n\n{text}\n")
    with atomic_open(folder / "faults.json", "w") as file:
        json.dump({"machine": about, "tries": tries}, file, indent=1)
