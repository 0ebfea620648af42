"""``python -m e3va.data check`` and ``e3va check``."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data.label_maps import MOST_CLASSES
from ..utils.atomic import atomic_open
from ..utils.command import run_command
from ..utils.errors import UserError
from ..utils.optional import require

WRONG_USAGE = 2
SHOWN = 12  # images of the contact sheet

DESCRIPTION = """\
Look at data before they are trained on: counts, problems, a contact sheet.

  check photos.json --images photos      a COCO-format file
  check labels --images photos           label maps: for photos/a.jpg the file labels/a.png
  check VOC2007                          Pascal VOC's folders
  check coco_2017_train                  a name of Detectron2's, below DETECTRON2_DATASETS

Every image is opened. Problems are counted, the first of each kind shown, and with --output all
of them written to problems.json, beside the contact sheet sheet.png.

Exit status: 0 if training takes the data whole, 1 if it would stop or leave something out, 2 for
wrong usage."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; it sets ``run``."""
    parser.set_defaults(run=check)
    parser.add_argument(
        "path", metavar="PATH", help="a COCO-format file, a folder, or a name of Detectron2's"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the images; default: looked for beside PATH"
    )
    parser.add_argument(
        "--classes", metavar="NAMES", help="names for label maps, label 0 first, by commas"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="write problems.json and sheet.png into this folder"
    )
    parser.add_argument(
        "--sheet",
        type=_count,
        default=SHOWN,
        metavar="N",
        help="images on the contact sheet, 0 for no sheet; default: %(default)s",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 0")
    return value


_count.__name__ = "whole number"


def check(args: argparse.Namespace) -> int:
    """Check data, print what was found; returns the exit status.

    Raises:
        UserError: the data cannot be opened at all, or training would refuse or drop something.
    """
    for package in ("PIL", "pycocotools", "tqdm"):  # numpy comes with pycocotools
        require(package, "checking data")
    from ..data.labels import LabelMaps
    from ..data.next_steps import next_steps
    from ..data.places import find_place
    from ..data.problems import DROPPED, REFUSED
    from ..data.tables import instances_text, labels_text

    place = find_place(args.path, args.images)
    if args.classes is not None and place.kind == "coco":
        print("error: --classes is for label maps: a COCO file has its own names", file=sys.stderr)
        return WRONG_USAGE
    folder = _output_folder(args.output)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # about files that are looked at anyway
        found, coco = _look(place, _names(args.classes))
        for note in place.notes:
            print(f"note: {note}")
        print((labels_text if isinstance(found, LabelMaps) else instances_text)(found))
        print(f"\n{found.problems.text()}")
        if folder:
            _write(found, folder, args.sheet)
    if folder and place.kind == "voc":
        place = replace(place, coco=folder / "annotations.json")
        with atomic_open(place.coco, "w") as file:
            json.dump(coco, file)
        print(f"wrote {place.coco}: the boxes in COCO format")
    refused = found.problems.count(REFUSED)
    if not refused:
        print(f"\n{next_steps(found, place)}")
    if refused or found.problems.count(DROPPED):
        raise UserError(found.problems.summary())
    return 0


def _names(classes: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    if len(names) > MOST_CLASSES:
        raise UserError(f"--classes has {len(names)} names: expected {MOST_CLASSES} at most")
    return names


def _output_folder(output: str | None) -> Path | None:
    if output is None:
        return None
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be made a folder ({error.strerror}): give another"
        ) from None
    return folder


def _look(place, names: tuple[str, ...]):
    """The data of a place, checked, and what is in its COCO-format file, if it is one."""
    from ..data.check import check_instances, kind_of_file
    from ..data.coco import load_json
    from ..data.labels import check_labels
    from ..data.places import ADE20K_CLASSES, ADE20K_SPLITS, find_image_root
    from ..data.voc import read_voc

    if place.kind == "labels":
        count = ADE20K_CLASSES if place.name in ADE20K_SPLITS else None
        shift = place.shift
        return check_labels(place.path, place.images, names, shift=shift, classes=count), None
    if place.kind == "voc":
        data = read_voc(place.path, place.split, names)
        return check_instances(data, place.path, place.images), data
    data = load_json(place.path)
    root = place.images
    if root is None and kind_of_file(data) != "panoptic":
        listed = data.get("images")
        records = listed[:20] if isinstance(listed, list) else []
        names = [r.get("file_name") for r in records if isinstance(r, dict)]
        root = find_image_root(place.path, [name for name in names if isinstance(name, str)])
    if kind_of_file(data) == "keypoints":
        print("note: a keypoints file: its boxes and masks are checked, its keypoints are not")
    return check_instances(data, place.path, root), data


def _write(found, folder: Path, count: int) -> None:
    from ..data.labels import LabelMaps
    from ..data.sheet import write_sheet
    from ..data.tables import instances_numbers, labels_numbers

    numbers = (labels_numbers if isinstance(found, LabelMaps) else instances_numbers)(found)
    found.problems.write(folder / "problems.json", numbers)
    print(f"\nwrote {folder / 'problems.json'}")
    if count and numbers["images"]:
        shown = write_sheet(found, count, folder / "sheet.png")
        print(f"wrote {folder / 'sheet.png'}: {shown} images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m e3va.data``; returns the exit status: see ``DESCRIPTION``, and 130 after
    Ctrl-C."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m e3va.data", formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_arguments(
        commands.add_parser(
            "check", help="count, find problems, draw", description=DESCRIPTION, formatter_class=raw
        )
    )
    args = parser.parse_args(arguments)
    return run_command(args.run, args)
