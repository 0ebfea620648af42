"""Locations of data: paths that a user names, or data sets of Detectron2 by name."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.paths import IMAGE_SUFFIXES, list_files

VARIABLE = "DETECTRON2_DATASETS"
ADE20K, ADE20K_CLASSES = "ADEChallengeData2016", 150

# Detectron2's built-in data sets: name → images and annotations, relative to their root.
COCO = {
    f"coco_{split}": (f"coco/{images}", f"coco/annotations/instances_{file}.json")
    for split, images, file in (
        ("2014_train", "train2014", "train2014"),
        ("2014_val", "val2014", "val2014"),
        ("2014_minival", "val2014", "minival2014"),
        ("2014_valminusminival", "val2014", "valminusminival2014"),
        ("2017_train", "train2017", "train2017"),
        ("2017_val", "val2017", "val2017"),
        ("2017_val_100", "val2017", "val2017_100"),
    )
}
KEYPOINTS = {
    f"keypoints_{name}": (images, file.replace("instances_", "person_keypoints_"))
    for name, (images, file) in COCO.items()
}
# Detectron2's names stand for shifted labels, the names of this project for published labels.
ADE20K_SHIFTED = {"ade20k_sem_seg_train": "training", "ade20k_sem_seg_val": "validation"}
ADE20K_PUBLIC = {"ade_challenge_2016_train": "training", "ade_challenge_2016_val": "validation"}
ADE20K_SPLITS = ADE20K_SHIFTED | ADE20K_PUBLIC
VOC = {
    f"voc_{year}_{split}": (f"VOC{year}", split)
    for year, splits in (("2007", "trainval train val test"), ("2012", "trainval train val"))
    for split in splits.split()
}
NAMES = (*COCO, *KEYPOINTS, *ADE20K_SPLITS, *VOC)
ACCEPTED = (
    "a COCO-format .json file, YOLO's data.yaml, a folder of Pascal VOC (XML), or a folder of "
    "labelme's .json files"
)


@dataclass(frozen=True)
class DataLocation:
    """The files of a data set."""

    kind: str  # coco, yolo (path is a file), voc, labelme or labels (path is a folder)
    path: Path  # the annotations
    images: Path | None  # None if they are not given and not found yet
    name: str = ""  # name of the data set in Detectron2, "" for the user's own data
    split: str = ""  # YOLO's train or val; name of VOC's list of images, "" for all images
    first_label: int = 0  # label of class 0 in the label maps
    notes: tuple[str, ...] = ()  # sentences for the user about what was assumed


def find_location(path: str, images: str | None = None) -> DataLocation:
    """Find the data at a path, or one of :data:`NAMES`; raise UserError if there are none.

    The path is one of :data:`ACCEPTED`, or a folder of label maps. Without ``images``, the folder
    of the images is looked for beside it.
    """
    given = Path(path).expanduser()
    root = None if images is None else Path(images).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"no folder {images}: expected the folder of the images (--images)")
    if not given.exists():
        if path in NAMES:
            return _find_by_name(path, root)
        raise UserError(
            f"no file or folder {path}: expected {ACCEPTED}, a folder of label maps, or a data "
            f"set of Detectron2 such as {', '.join(NAMES[4:6])}"
        )
    if given.is_dir() and not _kind_of_folder(given) and visible_files(given, ".png"):
        return _find_label_maps(given, root)
    kind, file = find_kind(given)
    return DataLocation(kind, file, root, split="train" if kind == "yolo" else "")


def find_kind(path: Path) -> tuple[str, Path]:
    """Return the kind of annotations of instances at a path, and their file or folder.

    The kind is ``coco``, ``yolo``, ``voc`` or ``labelme``. For a folder with a ``data.yaml``, the
    path is that of the file.

    Raises:
        UserError: the path is none of :data:`ACCEPTED`.
    """
    kinds = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}
    if path.is_dir():
        if kind := _kind_of_folder(path):
            return kind, next(iter(_data_yaml(path)), path)
        names = [file.name for file in visible_files(path, ".json")][:2]
        hint = f"; name one of its files, such as {names[0]}" if names else ""
        if visible_files(path, ".txt") or any(path.glob("labels/*")):
            hint = "; a folder of YOLO needs a data.yaml, which names its classes and images"
        raise UserError(f"the folder {path} has no annotations: expected {ACCEPTED}{hint}")
    if path.suffix.lower() not in kinds:
        what = "is not a .json file or data.yaml" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: expected {ACCEPTED}")
    return kinds[path.suffix.lower()], path


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder with a suffix, sorted, without hidden ones such as ``._a``."""
    return list_files(folder, {suffix}) if folder.is_dir() else []


def find_xml_folder(folder: Path) -> Path | None:
    """Return the folder of VOC's XML files, ``Annotations`` in a folder or the folder itself."""
    folders = (folder / "Annotations", folder / "annotations", folder)
    return next((place for place in folders if visible_files(place, ".xml")), None)


def _kind_of_folder(folder: Path) -> str | None:
    if _data_yaml(folder):
        return "yolo"
    if find_xml_folder(folder):
        return "voc"
    files = visible_files(folder, ".json")
    try:
        return "labelme" if files and "shapes" in json.loads(files[0].read_bytes()) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _data_yaml(folder: Path) -> list[Path]:
    places = [folder / name for name in ("data.yaml", "data.yml")]
    return [place for place in places if place.is_file()]


def _find_label_maps(given: Path, root: Path | None) -> DataLocation:
    maps = visible_files(given, ".png")
    likely = [p for p in _likely_image_folders(given) if p != given and p.is_dir()]
    stems = ((p, {file.stem for file in list_files(p, IMAGE_SUFFIXES)}) for p in likely)
    root = root or next((p for p, own in stems if maps[0].stem in own), None)
    notes = () if root else ("no --images: only the label maps are checked",)
    return DataLocation("labels", given, root, notes=notes)


def _find_by_name(name: str, images: Path | None) -> DataLocation:
    root = Path(os.getenv(VARIABLE, "datasets")).expanduser()
    if name in ADE20K_SPLITS:
        return _find_ade20k(name, root / ADE20K, images)
    if name in VOC:
        folder, split = VOC[name]
        paths = [root / folder / "Annotations", root / folder / "JPEGImages"]
        _require(paths, name)
        return DataLocation("voc", root / folder, images or paths[1], name, split)
    folder, file = (COCO | KEYPOINTS)[name]
    images = images or root / folder
    _require([root / file, images], name)
    return DataLocation("coco", root / file, images, name)


def _find_ade20k(name: str, root: Path, images: Path | None) -> DataLocation:
    split = ADE20K_SPLITS[name]
    images = images or root / "images" / split
    shifted, published = root / "annotations_detectron2" / split, root / "annotations" / split
    order = (shifted, published) if name in ADE20K_SHIFTED else (published, shifted)
    labels = next((folder for folder in order if folder.is_dir()), order[0])
    _require([labels, images], name)
    if labels == shifted:
        return DataLocation("labels", shifted, images, name)
    note = f"{published} has the published labels: 1 to {ADE20K_CLASSES}, and 0 for no class"
    return DataLocation("labels", published, images, name, first_label=1, notes=(note,))


def _require(paths: list[Path], name: str) -> None:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        value = os.getenv(VARIABLE)
        state = f"{VARIABLE}={value}" if value else f"{VARIABLE} is not set, so it is ./datasets"
        raise UserError(
            f"data set {name}: no {' and no '.join(missing)} ({state}): set {VARIABLE} to the "
            "folder of the data sets; Detectron2's documentation shows its layout"
        )


def find_image_root(json_file: Path, records: Any) -> Path:
    """Find the folder of a COCO-format file's images beside it; raise UserError if there is none.

    The folder must have one of the first images in ``records``, which may be malformed.
    """
    folders = _likely_image_folders(json_file)
    records = [r for r in records[:20] if isinstance(r, dict)] if isinstance(records, list) else []
    names = [r["file_name"] for r in records if isinstance(r.get("file_name"), str)]
    names += [name.replace("\\", "/") for name in names if "\\" in name]
    for name, folder in itertools.product(names, folders):
        if (folder / name).is_file():
            return folder
    raise UserError(
        f"the images of {json_file} are not beside it (looked for {names[0] if names else 'any'} "
        f"in {', '.join(map(str, folders))}): name their folder with --images"
    )


def _likely_image_folders(annotations: Path) -> list[Path]:
    """Return folders where the images of a file or of a folder of label maps may be.

    Examples: train.json → train; annotations/instances_train2017.json → train2017; train_sem_seg →
    train; annotations/training → images/training; labels → images.
    """
    parent, stem = annotations.parent, annotations.stem
    short = stem.removeprefix("instances_").removeprefix("person_keypoints_")
    short = short.removesuffix("_sem_seg").removesuffix("_labels").removesuffix("_annotations")
    folders = [parent / stem, parent / short, parent.parent / short]
    if parent.name.startswith("annotations") or parent.name == "labels":
        folders.append(parent.parent / "images" / annotations.name)
    folders += [parent / "images", parent.parent / "images", parent]
    return list(dict.fromkeys(path for path in folders if path.suffix != ".json"))
