"""The command ``e3va check``."""

import argparse
import sys
import warnings

from ..data.check import (
    SHEET_IMAGES,
    check_location,
    find_location,
    make_output_folder,
    write_findings,
)
from ..data.label_maps import class_names
from ..data.next_steps import next_steps
from ..data.problems import REFUSED
from ..data.report import report_text
from ..utils.errors import UserError

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and set ``run``."""
    parser.set_defaults(run=check)

    def add(name: str, metavar: str, text: str, **options) -> None:
        parser.add_argument(name, metavar=metavar, help=text, **options)

    add("path", "PATH", "COCO-format file, folder, or name of a data set of Detectron2")
    add("--images", "DIR", "folder of the images; default: looked for beside PATH")
    add("--classes", "NAMES", "class names of label maps, separated by commas, label 0 first")
    add("--output", "DIR", "folder for problems.json and sheet.png")
    text = "number of images on the contact sheet, 0 for no sheet; default: %(default)s"
    add("--sheet", "N", text, type=_whole_number, default=SHEET_IMAGES)


def _whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 0")
    return value


_whole_number.__name__ = "whole number"  # argparse prints it


def check(args: argparse.Namespace) -> int:
    """Check data, print the findings, and return the exit status.

    Raises:
        UserError: the data cannot be opened, or training would stop or drop annotations.
    """
    location = find_location(args.path, args.images)
    if args.classes is not None and location.kind == "coco":
        print("error: --classes: a COCO-format file has its own class names", file=sys.stderr)
        return WRONG_USAGE
    folder = None if args.output is None else make_output_folder(args.output)
    names = class_names(args.classes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # the check reports broken files itself
        found = check_location(location, names)
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
