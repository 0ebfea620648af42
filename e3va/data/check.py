"""Check data before training: count classes and objects, list problems, draw a contact sheet."""

import json
from pathlib import Path

from ..utils.atomic import atomic_open
from ..utils.counts import counted
from .check_instances import AS_LISTED, check_instances, kind_of_file
from .check_label_maps import check_label_maps
from .coco import ReadOptions
from .contact_sheet import write_sheet
from .formats import load_coco, load_content
from .locations import ADE20K_CLASSES, ADE20K_SPLITS, DataLocation, find_image_root
from .problems import Findings
from .report import report_numbers

SHEET_IMAGES = 12


def check_data(
    location: DataLocation,
    classes: tuple[str, ...] = (),
    options: ReadOptions = AS_LISTED,
) -> Findings:
    """Check annotations or label maps, and decode all images.

    ``classes`` are names for label maps, Pascal VOC and labelme; other formats have their own.
    ``options`` are those with which training will read the data.
    """
    path, root, notes = location.path, location.images, list(location.notes)
    if location.kind == "labels":
        count = ADE20K_CLASSES if location.name in ADE20K_SPLITS else None
        first = location.first_label
        settings = {"first": first, "classes": count, "skip_missing": options.skip_missing}
        found = check_label_maps(path, root, classes, **settings)
    elif location.kind != "coco":
        content, root, strays = load_content(location.kind, path, root, location.split, classes)
        found = check_instances(content, path, root, options)
        for note in strays:
            found.problems.note(note.kind, note.place, None, note.text)
    else:
        data = load_coco(path)
        kind = kind_of_file(data)
        if root is None and kind != "panoptic":
            root = find_image_root(path, data.get("images"))
        if kind == "keypoints":
            notes.append("boxes and masks are checked; the keypoints of this file are not")
        found = check_instances(data, path, root, options)
    found.location, found.notes = location, notes
    return found


def write_findings(found: Findings, folder: Path, sheet_images: int = SHEET_IMAGES) -> list[str]:
    """Write ``problems.json``, ``sheet.png``, and other formats as ``annotations.json``.

    Return a line about each file. ``annotations.json`` is written for YOLO, Pascal VOC and labelme.
    """
    numbers = report_numbers(found)
    found.problems.write(folder / "problems.json", numbers)
    lines = [f"wrote {folder / 'problems.json'}"]
    if sheet_images and numbers["images"]:
        shown = write_sheet(found, sheet_images, folder / "sheet.png")
        lines.append(f"wrote {folder / 'sheet.png'}: {counted(shown, 'image')}")
    if found.location.kind in ("yolo", "voc", "labelme"):
        file = folder / "annotations.json"
        with atomic_open(file, "w") as stream:
            json.dump(found.data, stream)
        lines.append(f"wrote {file}: the annotations in COCO format")
    return lines
