"""The command ``e3va check``."""

import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from ..data.check import SHEET_IMAGES, check_data, write_findings
from ..data.coco import ReadOptions
from ..data.formats import own_validation
from ..data.label_maps import class_names
from ..data.locations import DataLocation, find_location
from ..data.next_steps import next_steps
from ..data.problems import REFUSED, Findings
from ..data.report import report_text
from ..utils.atomic import make_folder
from ..utils.errors import UserError
from .arguments import add_reading, whole

WRONG_USAGE = 2
READING = ("skip_missing", "use_crowds")  # the options of a training that change what is refused

DESCRIPTION = """\
Check data before training: count classes and objects, list problems, draw a contact sheet.

  e3va check photos.json --images photos   a COCO-format file
  e3va check labels --images photos        label maps: labels/a.png for photos/a.jpg
  e3va check yolo/data.yaml                a YOLO folder; its train and its val images
  e3va check VOC2007                       a folder of Pascal VOC
  e3va check folder                        a folder of labelme's JSON files
  e3va check coco_2017_train               a data set of Detectron2, in DETECTRON2_DATASETS

Every image is decoded. The first problems of each kind are printed. With --output, all problems
are written to problems.json, images with their annotations are drawn on sheet.png, and YOLO,
Pascal VOC and labelme are also written in COCO format, to annotations.json.

Exit status: 0 if training would start and drop no annotation, 1 if it would stop or drop
annotations, 2 for wrong usage."""

ARGUMENTS = {
    "path": ("PATH", "COCO-format file, data.yaml, folder, or name of a data set of Detectron2"),
    "--images": ("DIR", "folder of the images; default: looked for beside PATH"),
    "--classes": (
        "NAMES",
        "class names, separated by commas: of label maps (label 0 first) or of VOC",
    ),
    "--output": ("DIR", "folder for problems.json, sheet.png and annotations.json"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, and set ``run``."""
    parser.set_defaults(run=check)
    for name, (metavar, text) in ARGUMENTS.items():
        parser.add_argument(name, metavar=metavar, help=text)
    add_reading(parser, *READING)
    text = "number of images on the contact sheet, 0 for no sheet; default: %(default)s"
    parser.add_argument("--sheet", metavar="N", type=whole(0), default=SHEET_IMAGES, help=text)


def check(args: argparse.Namespace) -> int:
    """Check data, print the findings, and return the exit status.

    Raises:
        UserError: the data cannot be opened, or training would stop or drop annotations.
    """
    location = find_location(args.path, args.images)
    if args.classes is not None and location.kind in ("coco", "yolo"):
        print(f"error: --classes: {location.path} has its own class names", file=sys.stderr)
        return WRONG_USAGE
    folder = None if args.output is None else make_folder(Path(args.output).expanduser())
    found = [_check(location, folder, args)]
    if location.kind == "yolo" and own_validation(location.path):
        print("\n")
        val = folder and make_folder(folder / "val")
        found.append(_check(replace(location, split="val"), val, args))
    if not any(part.problems.of_severity(REFUSED) for part in found):
        print(f"\n{next_steps(found[0], [name for name in READING if getattr(args, name)])}")
    if summary := next(filter(None, (part.problems.summary() for part in found)), None):
        raise UserError(summary)
    return 0


def _check(location: DataLocation, folder: Path | None, args: argparse.Namespace) -> Findings:
    """Check a split, print the findings, and write them if a folder is given."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # the check reports broken files itself
        reading = {name: getattr(args, name) for name in READING}
        options = ReadOptions(masks=None, **reading)
        found = check_data(location, class_names(args.classes), options)
        if location.kind == "yolo":
            print(f"the {location.split} images of {location.path}")
        elif location.kind == "voc" and not location.split and own_validation(location.path):
            print("note: all images are checked; training reads the lists in ImageSets/Main")
        for note in found.notes:
            print(f"note: {note}")
        print(f"{report_text(found)}\n\n{found.problems.text()}")
        if folder:
            print("", *write_findings(found, folder, args.sheet), sep="\n")
    return found
