"""The command ``e3va check``."""

import argparse
import sys
import warnings
from pathlib import Path

from ..data.check import SHEET_IMAGES, check_data, write_findings
from ..data.label_maps import class_names
from ..data.locations import find_location
from ..data.next_steps import next_steps
from ..data.problems import REFUSED
from ..data.report import report_text
from ..utils.atomic import make_folder
from ..utils.errors import UserError
from .arguments import whole

WRONG_USAGE = 2

DESCRIPTION = """\
Check data before training: count classes and objects, list problems, draw a contact sheet.

  e3va check photos.json --images photos   a COCO-format file
  e3va check labels --images photos        label maps: labels/a.png for photos/a.jpg
  e3va check VOC2007                       a folder of Pascal VOC
  e3va check coco_2017_train               a data set of Detectron2, in DETECTRON2_DATASETS

Every image is decoded. The first problems of each kind are printed. With --output, all problems
are written to problems.json, and images with their annotations are drawn on sheet.png.

Exit status: 0 if training would use all of the data, 1 if it would stop or drop annotations,
2 for wrong usage."""

ARGUMENTS = {
    "path": ("PATH", "COCO-format file, folder, or name of a data set of Detectron2"),
    "--images": ("DIR", "folder of the images; default: looked for beside PATH"),
    "--classes": ("NAMES", "class names of label maps, separated by commas, label 0 first"),
    "--output": ("DIR", "folder for problems.json and sheet.png"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and set ``run``."""
    parser.set_defaults(run=check)
    for name, (metavar, text) in ARGUMENTS.items():
        parser.add_argument(name, metavar=metavar, help=text)
    text = "number of images on the contact sheet, 0 for no sheet; default: %(default)s"
    parser.add_argument("--sheet", metavar="N", type=whole(0), default=SHEET_IMAGES, help=text)


def check(args: argparse.Namespace) -> int:
    """Check data, print the findings, and return the exit status.

    Raises:
        UserError: the data cannot be opened, or training would stop or drop annotations.
    """
    location = find_location(args.path, args.images)
    if args.classes is not None and location.kind == "coco":
        print("error: --classes: a COCO-format file has its own class names", file=sys.stderr)
        return WRONG_USAGE
    folder = None if args.output is None else make_folder(Path(args.output).expanduser())
    names = class_names(args.classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # the check reports broken files itself
        found = check_data(location, names)
        for note in found.notes:
            print(f"note: {note}")
        print(f"{report_text(found)}\n\n{found.problems.text()}")
        if folder:
            print("", *write_findings(found, folder, args.sheet), sep="\n")
    if not found.problems.of_severity(REFUSED):
        print(f"\n{next_steps(found)}")
    if summary := found.problems.summary():
        raise UserError(summary)
    return 0
