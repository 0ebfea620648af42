"""Read YOLO folders as COCO-format data: a ``data.yaml`` names the classes and the images.

supervision reads the lines of the label files, see :mod:`e3va.data.formats` for why. It leaves
three things to its callers: which images a split of ``data.yaml`` has, class numbers with gaps, and
polygons as points, since it draws the masks of all images at once.
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, brief
from ..utils.optional import require
from ..utils.paths import IMAGE_SUFFIXES
from .coco_values import show
from .image_files import Found, Note, is_image, size_of, walk
from .images import Size, in_threads

PURPOSE = "reading YOLO folders"
_KEYS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
# Coordinates are shares of the image's sides; those of tools are at most a little beyond 0 to 1.
LOWEST, HIGHEST = -0.5, 1.5


def load_yaml(file: Path) -> dict:
    """Read a ``data.yaml``; raise UserError if it is none, or names no classes."""
    yaml = require("yaml", PURPOSE)
    try:
        text = file.read_text(encoding="utf-8-sig")
        data = yaml.safe_load(text)
        if isinstance(data, dict):  # YAML reads a class named yes as true
            data["names"] = yaml.load(text, Loader=yaml.BaseLoader).get("names")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not YAML ({brief(error)}): expected YOLO's data.yaml") from None
    if not isinstance(data, dict) or not isinstance(data.get("names"), list | dict):
        raise UserError(
            f"{file} names no classes: expected YOLO's data.yaml, with 'names' and with the images "
            "in 'train' and 'val'"
        )
    return data


def yolo_classes(file: Path) -> dict[int, str]:
    """Return the class names of a ``data.yaml`` by class number, ascending."""
    names = load_yaml(file)["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        return dict(sorted((int(number), str(name)) for number, name in pairs))
    except (TypeError, ValueError):
        raise UserError(
            f"{file} has the 'names' {list(names)}: expected a list, or class numbers with names"
        ) from None


def has_split(data: dict, split: str) -> bool:
    """Return whether a ``data.yaml`` names the images of a split."""
    return any(data.get(key) for key in _KEYS[split])


def read_yolo(file: Path, split: str, images: Path | None = None) -> Found:
    """Read the objects of a split as the content of a COCO-format file.

    The category ids are YOLO's class numbers. A line with a polygon becomes an object with a
    ``segmentation``, any other line an object with a box only. An image without a label file has no
    objects.

    Args:
        file: path of the ``data.yaml``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        images: folder that must hold the images of the split; None for any.

    Raises:
        UserError: the file has a mistake, its images or all of its label files are not found, or a
            label file cannot be read.
    """
    data = load_yaml(file)
    paths = _find_images(data, file, split)
    root = Path(os.path.commonpath([path.parent for path in paths]))
    if images is not None:
        own = images.absolute()
        if not root.is_relative_to(own) and not root.resolve().is_relative_to(own.resolve()):
            raise UserError(
                f"the {split} images that {file} names are in {root}, not in {images}: leave out "
                "the folder of the images, since data.yaml names it"
            )
        root = own if root.is_relative_to(own) else root
    labels = [_find_labels(path) for path in paths]
    if not any(labels):
        raise UserError(
            f"none of the {len(paths)} {split} images of {file} has a label file: expected "
            f"{_label_places(paths[0])[0]} for {paths[0]}"
        )
    records, annotations = [], []
    sizes = in_threads(size_of, paths, "reading image sizes")
    for number, (path, label, size) in enumerate(zip(paths, labels, sizes, strict=True), 1):
        name = path.relative_to(root).as_posix()
        records.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for found in _read_labels(label, size, _keypoint_values(data)) if label else ():
            annotations.append({"id": len(annotations) + 1, "image_id": number, **found})
    categories = [{"id": n, "name": name} for n, name in yolo_classes(file).items()]
    content = {"images": records, "annotations": annotations, "categories": categories}
    return Found(content, root, _find_strays(_find_places(data, file, split), paths))


def _find_images(data: dict, file: Path, split: str) -> list[Path]:
    """Return the images of a split, in the order of its folders and lists."""
    paths: list[Path] = []
    places = _find_places(data, file, split)
    for place in places:
        paths += _list(place) if place.is_dir() else _read_list(place)
    if not paths:
        raise UserError(
            f"{file}: no image in {', '.join(map(str, places))}, the {split} images: expected "
            f"files with the suffix {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return paths


def _find_places(data: dict, file: Path, split: str) -> list[Path]:
    """Return the folders and lists of a split."""
    value = next((data[key] for key in _KEYS[split] if data.get(key)), None)
    if not value:
        raise UserError(f"{file} names no {split} images: expected a folder in {split!r}")
    entries = value if isinstance(value, list) else [value]
    folder = file.absolute().parent
    bases = [folder / str(data["path"]), Path(str(data["path"]))] if data.get("path") else []
    found: list[Path] = []
    for entry in map(str, entries):
        # Roboflow writes ../train/images for train/images, as Ultralytics reads it.
        names = dict.fromkeys([entry, entry.removeprefix("../")])
        places = [_absolute(base / name) for base in [*bases, folder] for name in names]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(
                f"{file}: the {split} images {entry!r} do not exist (looked for "
                f"{' and '.join(dict.fromkeys(map(str, places)))}): correct 'path' or {split!r}"
            )
        found.append(place)
    return found


def _absolute(path: Path) -> Path:
    """Return an absolute path without ``..``; links stay, since labels are beside the link."""
    plain = Path(os.path.abspath(path))
    return plain if plain.exists() or not path.exists() else path.resolve()


def _list(folder: Path) -> list[Path]:
    """Return the images of a folder and its subfolders."""
    return [path for path in walk(folder) if is_image(path)]


def _find_strays(places: list[Path], images: list[Path]) -> list[Note]:
    """Return a note for each label file without an image, in the label folders of the places."""
    known = {place for image in images for place in _label_places(image)}
    folders = {_label_places(place / "x")[0].parent for place in places if place.is_dir()}
    files = {file for folder in folders for file in walk(folder) if file.suffix == ".txt"}
    return [
        Note("unread", file, "the label file has no image")
        for file in sorted(files - known)
        if _has_labels(file)
    ]


def _has_labels(file: Path) -> bool:
    """Return whether the first line of a text file is that of a label file."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            return len(list(map(float, next(lines, "").split()))) > 4
    except (OSError, ValueError):
        return False


def _read_list(file: Path) -> list[Path]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({brief(error)}): expected a list of images, one a line"
        ) from None
    return [_absolute(file.parent / line.strip()) for line in lines if line.strip()]


def _label_places(image: Path) -> list[Path]:
    """Return the paths where an image's label file may be: images/a.jpg → labels/a.txt, a.txt."""
    parts, beside = list(image.parts), image.with_suffix(".txt")
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if not folders:
        return [beside]
    parts[folders[-1]] = "labels"
    return [Path(*parts).with_suffix(".txt"), beside]


def _find_labels(image: Path) -> Path | None:
    places = itertools.chain(_label_places(image), _label_places(image.resolve()))
    return next((place for place in places if place.is_file()), None)


def _keypoint_values(data: dict) -> int:
    """Return the number of values behind the box in a line with keypoints; 0 without keypoints."""
    shape: Any = data.get("kpt_shape")
    return shape[0] * shape[1] if isinstance(shape, list) and len(shape) == 2 else 0


def _read_labels(file: Path, size: Size, keypoint_values: int) -> Iterator[dict]:
    """Yield the annotation record of each line, in pixels of an image of the given size."""
    reader = require("supervision.dataset.formats.yolo", PURPOSE)
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8-sig").splitlines()]
        lines = [v[:5] if len(v) == 5 + keypoint_values else v for v in lines if v]
        found = reader.yolo_annotations_to_detections(list(map(" ".join, lines)), size, False)
        for values, box, label in zip(lines, found.xyxy.tolist(), found.class_id, strict=True):
            x1, y1, x2, y2 = box
            record = {"category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            polygon = len(values) > 6  # with a confidence behind it if the number is odd
            points = values[1 : len(values) - (len(values) - 1) % 2] if polygon else values[1:5]
            shares = [float(value) for value in points]
            if wrong := [v for v in shares if not LOWEST < v < HIGHEST]:
                raise ValueError(
                    f"the line {show(' '.join(values))} has the coordinate {wrong[0]:g}, expected "
                    "0 to 1: a class number with a box or a polygon, and a confidence at most"
                )
            if polygon:
                scaled = [share * size[place % 2] for place, share in enumerate(shares)]
                record["segmentation"] = [scaled]
            yield record
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not a label file of YOLO: {brief(error)}") from None
