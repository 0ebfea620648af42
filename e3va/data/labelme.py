"""Read labelme's JSON files, one for each image, as COCO-format data.

supervision reads the shapes, see :mod:`e3va.data.formats` for why. It skips circles and masks, and
draws polygons at whole pixels, all of them at once: so circles become polygons first, as in
labelme's own converter to COCO, and the points of the polygons are kept.
"""

import base64
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

from ..utils.errors import UserError, brief
from ..utils.optional import require
from .coco import load_json
from .image_files import Found, Note, names_by_stem, size_of, walk
from .images import BROKEN, Size
from .locations import visible_files

PURPOSE = "reading labelme's files"
NO_CLASSES = {"__ignore__", "_background_"}  # labels of labelme's own lists of classes
Points = list[list[float]]


def labelme_classes(folder: Path) -> list[str]:
    """Return the labels in the files of a folder, sorted."""
    contents = map(_load, visible_files(folder, ".json"))
    return _labels(shape for content in contents for shape in content["shapes"])


def _labels(shapes: Iterable[dict]) -> list[str]:
    return sorted({str(shape.get("label")) for shape in shapes} - NO_CLASSES)


def read_labelme(
    folder: Path, names: tuple[str, ...] = (), images: Path | None = None, masks: bool = False
) -> Found:
    """Read the shapes of a folder as the content of a COCO-format file.

    Polygons, circles and masks become objects with a ``segmentation``. Rectangles become boxes, or
    polygons of four points if the folder has other shapes too. Shapes of one label and
    ``group_id`` are one object. Points and lines have no area and are left out by the reader of the
    content. Shapes with labelme's own labels ``__ignore__`` and ``_background_`` are left out.

    Args:
        folder: folder of the JSON files.
        names: class names; the default is the labels in the files, sorted.
        images: folder of the images; None for the paths in the JSON files.
        masks: whether rectangles become polygons even if the folder has no other shapes.

    Raises:
        UserError: a JSON file is not one of labelme, or has a malformed shape.
    """
    contents = {file: _load(file) for file in visible_files(folder, ".json")}
    shapes = [shape for content in contents.values() for shape in content["shapes"]]
    labels = _labels(shapes)
    index = {name: number for number, name in enumerate(names or labels, 1)}
    known = {label: index.get(label, f"class {label}") for label in labels}
    others = (shape for shape in shapes if not _is_box(shape))
    with_masks = masks or any(_outline(shape) or shape.get("mask") for shape in others)
    root = (images or folder).absolute()
    stems = names_by_stem(root)
    records, annotations, notes = [], [], _find_below(folder)
    for number, (file, content) in enumerate(contents.items(), 1):
        name = _image_name(file, content, root, stems)
        size = tuple(content.get(key) for key in ("imageWidth", "imageHeight"))
        width, height = size if all(size) else size_of(root / name)
        records.append({"id": number, "file_name": name, "width": width, "height": height})
        used = [shape for shape in content["shapes"] if shape.get("label") not in NO_CLASSES]
        text = "a shape is no object, by its label"
        notes += [Note("no_class", root / name, text)] * (len(content["shapes"]) - len(used))
        try:
            found = list(_objects(used, (width, height), with_masks))
        except (TypeError, ValueError, KeyError, *BROKEN) as error:
            raise UserError(f"{file} has a malformed shape: {brief(error)}") from None
        for label, record in found:
            record |= {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            annotations.append({**record, "category_id": known[label]})
    categories = [{"id": number, "name": name} for name, number in index.items()]
    content = {"images": records, "annotations": annotations, "categories": categories}
    return Found(content, root, notes)


def _find_below(folder: Path) -> list[Note]:
    """Return a note for each file of labelme in the subfolders, which are not read."""
    return [
        Note("unread", file, "the file is in a subfolder")
        for file in walk(folder)
        if file.suffix.lower() == ".json" and file.parent != folder
        if b'"shapes"' in file.read_bytes()
    ]


def _load(file: Path) -> dict:
    content = load_json(file)
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise UserError(
            f"{file} is not a file of labelme: expected a list of 'shapes'; remove it from the "
            "folder, or name a COCO-format file itself"
        )
    for shape in shapes:
        if "label" in shape:
            shape["label"] = str(shape["label"]).strip()
    content.pop("imageData", None)  # a copy of the image, of many megabytes
    return content


def _image_name(file: Path, content: dict, root: Path, stems: dict[str, list[str]]) -> str:
    """Return the path of a file's image relative to the folder of the images."""
    written = PureWindowsPath(str(content.get("imagePath") or ""))  # reads both kinds of slashes
    own = root == file.absolute().parent  # the written path starts at the JSON file's folder
    for name in [written.as_posix(), written.name][not own and ".." in written.parts :]:
        if name and (root / name).is_file():
            return name
    return stems.get(file.stem, [written.name or f"{file.stem}.jpg"])[0]


def _is_box(shape: dict) -> bool:
    return shape.get("shape_type") == "rectangle"


def _outline(shape: dict) -> Points | None:
    """Return the points of a shape's polygon; None for a shape without one."""
    kind, points = shape.get("shape_type", "polygon"), shape.get("points") or []
    if kind == "polygon" and len(points) > 2:
        return points
    if kind == "rectangle" and len(points) > 1:
        xs, ys = zip(*points, strict=True)
        x1, x2, y1, y2 = min(xs), max(xs), min(ys), max(ys)
        return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    if kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        # As many points as labelme takes: chords are at most 1 pixel inside the circle.
        count = max(12, int(math.pi / math.acos(1 - 1 / radius))) if radius > 1 else 12
        turns = [2 * math.pi * step / count for step in range(count)]
        return [[x + radius * math.cos(turn), y + radius * math.sin(turn)] for turn in turns]
    return None


def _objects(shapes: list[dict], size: Size, with_masks: bool) -> Iterator[tuple[str, dict]]:
    """Yield the label, and the box and mask, of each object in an image."""
    reader = require("supervision.dataset.formats.labelme", PURPOSE)
    outlined: list[dict[str, Any]] = []
    groups: dict[Any, list[list[float]]] = {}  # the polygons of each object
    for shape in shapes:
        label, outline = str(shape["label"]), _outline(shape)
        if outline:
            polygon = {"label": label, "shape_type": "polygon", "points": outline}
            outlined.append(polygon | {"group_id": shape.get("group_id")})
            group = shape.get("group_id")
            key = len(outlined) if group is None else (label, str(group))
            groups.setdefault(key, []).append([float(v) for point in outline for v in point])
        elif shape.get("shape_type") == "mask" and shape.get("mask"):
            yield label, _read_mask(shape, size)
        else:  # of no area, so that it is left out and counted
            yield label, {"bbox": [0.0, 0.0, 0.0, 0.0]}
    index = {label: place for place, label in enumerate({s["label"]: None for s in outlined})}
    labels = list(index)
    found = reader.labelme_shapes_to_detections(outlined, index, size, with_masks=False)
    rows = zip(found.xyxy.tolist(), found.class_id, groups.values(), strict=True)
    for (x1, y1, x2, y2), place, polygons in rows:
        record: dict[str, Any] = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
        yield labels[place], record | ({"segmentation": polygons} if with_masks else {})


def _read_mask(shape: dict, size: Size) -> dict:
    """Return the box and RLE of a shape with a mask: a PNG file in base64 at its first point."""
    picture = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
    full = Image.new("L", size)
    full.paste(picture.convert("L"), tuple(round(value) for value in shape["points"][0]))
    rle = pycocotools.mask.encode(np.asfortranarray(np.array(full) > 0, dtype=np.uint8))
    box = pycocotools.mask.toBbox(rle).tolist()
    return {"bbox": box, "segmentation": {**rle, "counts": rle["counts"].decode()}}
