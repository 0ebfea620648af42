"""Check data before training: count classes and objects, list problems, draw a contact sheet."""

import json
from pathlib import Path

from ..utils.atomic import atomic_open
from .check_instances import check_instances, kind_of_file
from .check_label_maps import check_label_maps
from .coco import load_json
from .contact_sheet import write_sheet
from .locations import ADE20K_CLASSES, ADE20K_SPLITS, DataLocation, find_image_root
from .problems import Findings
from .report import report_numbers
from .voc import read_voc

SHEET_IMAGES = 12


def check_data(location: DataLocation, classes: tuple[str, ...] = ()) -> Findings:
    """Check annotations or label maps, and decode all images.

    ``classes`` are names for label maps and Pascal VOC; a COCO-format file has its own.
    """
    path, root, notes = location.path, location.images, list(location.notes)
    if location.kind == "labels":
        count = ADE20K_CLASSES if location.name in ADE20K_SPLITS else None
        first = location.first_label
        found = check_label_maps(path, root, classes, first=first, classes=count)
    elif location.kind == "voc":
        found = check_instances(read_voc(path, location.split, classes), path, root)
    else:
        data = load_json(path)
        kind = kind_of_file(data)
        if root is None and kind != "panoptic":
            root = find_image_root(path, data.get("images"))
        if kind == "keypoints":
            notes.append("boxes and masks are checked; the keypoints of this file are not")
        found = check_instances(data, path, root)
    found.location, found.notes = location, notes
    return found


def write_findings(found: Findings, folder: Path, sheet_images: int = SHEET_IMAGES) -> list[str]:
    """Write ``problems.json``, ``sheet.png``, and boxes of Pascal VOC as ``annotations.json``.

    Return a line about each file. For Pascal VOC, ``found.source`` becomes the COCO-format file,
    so that the next commands use it.
    """
    numbers = report_numbers(found)
    found.problems.write(folder / "problems.json", numbers)
    lines = [f"wrote {folder / 'problems.json'}"]
    if sheet_images and numbers["images"]:
        shown = write_sheet(found, sheet_images, folder / "sheet.png")
        lines.append(f"wrote {folder / 'sheet.png'}: {shown} images")
    if found.location.kind == "voc":
        found.source = str(folder / "annotations.json")
        with atomic_open(found.source, "w") as file:
            json.dump(found.data, file)
        lines.append(f"wrote {found.source}: the boxes in COCO format")
    return lines
