"""``e3va report``: a page on a training."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..report.page import Training, write_report
from ..torchvision.report import REPORT, read_training
from ..torchvision.trainer import SUMMARY
from ..utils.errors import UserError
from ..utils.optional import require
from .arguments import add_device, pick_device

DESCRIPTION = """\
Write a page on a training, report.html: scores, learning curves, the worst and the best images of
the validation data, what trained and at which cost. It is one file, for any browser. e3va train
writes it too."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    parser.add_argument("training", metavar="FOLDER", help="output folder of a training")
    text = f"file for the page (default: {REPORT} in the folder)"
    parser.add_argument("--output", metavar="FILE", help=text)
    add_device(parser)


def run(args: Namespace) -> None:
    """Write the page, or one for each of the models that were trained together."""
    folder = Path(args.training).expanduser()
    parts = [folder]
    if not _is_training(folder):  # perhaps of models that were trained together
        parts = [part for part in sorted(folder.glob("*/")) if _is_training(part)] or [folder]
    if len(parts) > 1 and args.output:
        raise UserError(
            f"--output with {folder}, which has the trainings {', '.join(p.name for p in parts)}: "
            "give one of their folders, or leave --output out"
        )
    for part in parts:
        output = Path(args.output).expanduser() if args.output else part / REPORT
        found = _read(part, args.device)
        if found.without:
            print(f"{part}: {found.without}")
        write_report(found, output)
        print(f"wrote {output}")


def _is_training(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (SUMMARY, "metrics.json"))


def _read(folder: Path, device: str | None) -> Training:
    if not (folder / "config.yaml").is_file():
        return read_training(folder, pick_device(device))
    require("detectron2", f"the report on {folder}")
    from ..detectron2 import report

    return report.read_training(folder, device)
