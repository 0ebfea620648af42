"""``e3va report``: a page on a training."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..report.page import write_report
from ..torchvision.report import REPORT, read_training
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
    """Write the page."""
    folder = Path(args.training).expanduser()
    output = Path(args.output).expanduser() if args.output else folder / REPORT
    if (folder / "config.yaml").is_file():  # a training along Detectron2
        require("detectron2", f"the report on {folder}")
        from ..detectron2 import report

        found = report.read_training(folder, args.device)
    else:
        found = read_training(folder, pick_device(args.device))
    write_report(found, output)
    print(f"wrote {output}")
