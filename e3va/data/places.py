"""Where data lie: what the user gave, or a name of Detectron2's in its folder conventions."""

import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from ..utils.paths import IMAGE_SUFFIXES

VARIABLE = "DETECTRON2_DATASETS"
ADE20K, ADE20K_CLASSES = "ADEChallengeData2016", 150

# Facts of Detectron2's built-in data sets: name → images, annotations, below the root.
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
# Detectron2's names for shifted labels, and this project's for labels as they were published.
ADE20K_SHIFTED = {"ade20k_sem_seg_train": "training", "ade20k_sem_seg_val": "validation"}
ADE20K_PUBLIC = {"ade_challenge_2016_train": "training", "ade_challenge_2016_val": "validation"}
ADE20K_SPLITS = ADE20K_SHIFTED | ADE20K_PUBLIC
VOC = {
    f"voc_{year}_{split}": (f"VOC{year}", split)
    for year, splits in (("2007", "trainval train val test"), ("2012", "trainval train val"))
    for split in splits.split()
}
NAMES = (*COCO, *KEYPOINTS, *ADE20K_SPLITS, *VOC)


@dataclass(frozen=True)
class Place:
    """Data that were found.

    Attributes:
        kind: ``coco`` (``path`` is a file), ``labels`` or ``voc`` (``path`` is a folder).
        path: the annotations.
        images: their folder; None for label maps without images.
        name: Detectron2's, "" for the user's own.
        split: of VOC, the name of a list of images; "" for all.
        shift: see :class:`e3va.data.labels.LabelMaps`.
        notes: sentences for people about what was assumed.
        coco: of VOC, the COCO-format file that was written for it.
    """

    kind: str
    path: Path
    images: Path | None
    name: str = ""
    split: str = ""
    shift: int = 0
    notes: tuple[str, ...] = ()
    coco: Path | None = None


def find_place(path: str, images: str | None) -> Place:
    """What ``path`` stands for.

    Args:
        path: a COCO-format file, a folder of label maps, a folder of VOC's, or one of
            :data:`NAMES`.
        images: the folder of images, None to look for it.

    Raises:
        UserError: there is no such file, folder or name, or it is none of these.
    """
    given = Path(path).expanduser()
    root = None if images is None else Path(images).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"--images {images}: no such folder")
    if given.is_file():
        if given.suffix.lower() != ".json":
            raise UserError(f"{path} is not a .json file: expected COCO format, or a folder")
        return Place("coco", given, root)
    if given.is_dir():
        return _folder(given, root)
    if path in NAMES:
        return _known(path, root)
    raise UserError(
        f"no file or folder {path}: expected a COCO-format .json file, a folder of label maps, a "
        f"folder of Pascal VOC's, or a name of Detectron2's such as {', '.join(NAMES[3:5])}"
    )


def _folder(given: Path, root: Path | None) -> Place:
    if (given / "Annotations").is_dir():
        return Place("voc", given, root or given / "JPEGImages")
    if any(given.glob("*.xml")):
        return Place("voc", given, root or given.parent / "JPEGImages")
    if any(given.glob("*.png")):
        stem = min(path.stem for path in given.glob("*.png"))
        likely = [p for p in _image_folders(given) if p.is_dir() and p != given]
        root = root or _first([p for p in likely if _has_image(p, stem)])
        notes = () if root else ("no --images: label maps are checked alone",)
        return Place("labels", given, root, notes=notes)
    raise UserError(
        f"{given} has neither label maps (PNG) nor VOC's annotations (XML): expected one of them, "
        "or a COCO-format .json file"
    )


def _known(name: str, images: Path | None) -> Place:
    root = Path(os.path.expanduser(os.getenv(VARIABLE, "datasets")))
    if name in ADE20K_SPLITS:
        return _ade20k(name, root, images)
    if name in VOC:
        folder, split = VOC[name]
        _require([root / folder / "Annotations", root / folder / "JPEGImages"], name)
        return Place("voc", root / folder, images or root / folder / "JPEGImages", name, split)
    folder, file = (COCO | KEYPOINTS)[name]
    _require([root / file, images or root / folder], name)
    return Place("coco", root / file, images or root / folder, name)


def _ade20k(name: str, root: Path, images: Path | None) -> Place:
    base, split = root / ADE20K, ADE20K_SPLITS[name]
    images = images or base / "images" / split
    shifted, published = base / "annotations_detectron2" / split, base / "annotations" / split
    wanted, other = (published, shifted) if name in ADE20K_PUBLIC else (shifted, published)
    labels = other if other.is_dir() and not wanted.is_dir() else wanted
    _require([labels, images], name)
    if labels == shifted:
        return Place("labels", shifted, images, name)
    note = f"{published}: labels as published, 1 to {ADE20K_CLASSES}; 0 is no class"
    return Place("labels", published, images, name, shift=1, notes=(note,))


def _require(paths: list[Path], name: str) -> None:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        where = os.getenv(VARIABLE)
        said = f"{VARIABLE}={where}" if where else f"{VARIABLE} is not set, so it is ./datasets"
        raise UserError(
            f"data set {name}: no {' and no '.join(missing)} ({said}): set {VARIABLE} to the "
            "folder that holds it, laid out as Detectron2's datasets page says"
        )


def find_image_root(json_file: Path, names: list[str]) -> Path:
    """The folder of a COCO-format file's images, looked for beside it.

    Args:
        json_file: the annotation file.
        names: some of its ``file_name`` entries.

    Raises:
        UserError: none of them is in any likely folder; the text says where it looked.
    """
    tried = _image_folders(json_file)
    for name in names:
        root = _first([folder for folder in tried if (folder / name).is_file()])
        if root:
            return root
    raise UserError(
        f"the images of {json_file} are not beside it (looked for {names[0] if names else 'any'} "
        f"in {', '.join(map(str, tried))}): give their folder with --images"
    )


def _image_folders(annotations: Path) -> list[Path]:
    """Likely places: train.json → train; annotations/instances_train2017.json → train2017;
    train_sem_seg → train; annotations/training → images/training; labels → images."""
    parent, stem = annotations.parent, annotations.stem
    short = stem.removeprefix("instances_").removeprefix("person_keypoints_")
    short = short.removesuffix("_sem_seg").removesuffix("_labels").removesuffix("_annotations")
    found = [parent / stem, parent / short, parent.parent / short]
    if parent.name.startswith("annotations") or parent.name == "labels":
        found.append(parent.parent / "images" / annotations.name)
    found += [parent / "images", parent.parent / "images", parent]
    return list(dict.fromkeys(path for path in found if path.suffix != ".json"))


def _has_image(folder: Path, stem: str) -> bool:
    return any((folder / f"{stem}{suffix}").is_file() for suffix in IMAGE_SUFFIXES)


def _first(paths: list[Path]) -> Path | None:
    return next(iter(paths), None)
