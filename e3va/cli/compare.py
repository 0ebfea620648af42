"""``e3va compare``: a page on several trainings side by side."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..report.page import write_comparison
from ..torchvision.report import read_costs
from ..utils.atomic import make_folder
from ..utils.errors import UserError

DESCRIPTION = """\
Write a page on several trainings side by side: scores, learning curves, what trained and at which
cost. Scores are those of the trainings: compare trainings with the same validation data."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "trainings", metavar="FOLDER", nargs="+", help="output folder of a training"
    )
    parser.add_argument(
        "--output", metavar="FILE", default="compare.html", help="default: %(default)s"
    )


def run(args: Namespace) -> None:
    """Write the page."""
    trainings = [read_costs(Path(folder).expanduser()) for folder in args.trainings]
    if len({training.name for training in trainings}) < len(trainings):
        for training, folder in zip(trainings, args.trainings, strict=True):
            training.name = folder
    if len({training.name for training in trainings}) < len(trainings):
        raise UserError("a folder is given twice: expected different trainings")
    make_folder(Path(args.output).expanduser().parent)
    write_comparison(trainings, Path(args.output).expanduser())
    print(f"wrote {args.output}")
