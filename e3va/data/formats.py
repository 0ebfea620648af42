"""Annotations of instances in the formats that people have, read as COCO-format data.

YOLO folders, Pascal VOC and labelme are read with supervision (MIT licence, the extra ``formats``).
Of five libraries, it read the odd files of these formats best: confidences behind a YOLO box,
polygons, CRLF and images without a label file; VOC files without a size, with float coordinates or
a wrong file name, and VOC's boxes that count from 1; labelme's groups and backslashes. globox has
neither ``data.yaml`` nor masks, and needs a size in VOC; labelformat drops YOLO lines with a
confidence and images without a label file; pylabel stops at polygons; all three, and datumaro,
start VOC's boxes one pixel too far right and down. datumaro does not install beside Pillow 13.

Only its functions for one file are used. Those for a folder hold the masks of all images in memory
at full size (4.5 GiB for two images of 12 megapixels with 100 polygons each), with polygons rounded
to whole pixels, and decode each image of VOC. They also stop at class numbers with gaps and at
hidden files such as ``._a.jpg``, and skip labelme's circles.
"""

import os
from pathlib import Path

from ..utils.errors import UserError
from .coco import READ_ALL, CocoData, ReadOptions, category_names, load_json, read_content
from .labelme import labelme_classes, read_labelme
from .locations import find_image_root, find_kind
from .voc import list_path, read_voc, voc_classes
from .yolo import has_split, load_yaml, read_yolo, yolo_classes


def read_annotations(
    path: str | os.PathLike,
    images: str | os.PathLike | None,
    options: ReadOptions = READ_ALL,
    split: str = "train",
) -> CocoData:
    """Read and check annotations of instances.

    Args:
        path: COCO-format file, YOLO's ``data.yaml`` or its folder, folder of Pascal VOC, or folder
            of labelme's JSON files.
        images: folder of the images; None where ``data.yaml`` names it, or to look for it beside
            the annotations.
        options: what to read, and what to leave out. The ``classes`` become the classes of Pascal
            VOC and labelme, whose files do not list classes.
        split: split to read, ``"train"`` or ``"val"``, where ``path`` names several: YOLO's
            ``data.yaml``, or Pascal VOC's lists ``train.txt`` and ``val.txt``.

    Raises:
        UserError: there are no annotations at the path, or they have a mistake, see
            :func:`e3va.data.coco.read_content`; supervision is not installed.
    """
    kind, file = find_kind(Path(path).expanduser())
    root = None if images is None else Path(images).expanduser()
    if root is not None and not root.is_dir():
        raise UserError(f"no folder {images}: expected the folder of the images")
    if kind == "coco":
        data = load_coco(file)
        root = root or find_image_root(file, data.get("images"))
    else:
        if kind == "voc":
            split = _voc_list(file, split)
        data, root = load_content(kind, file, root, split, options.classes)
    return read_content(data, file, root, options)


def load_content(
    kind: str, path: Path, images: Path | None, split: str, names: tuple[str, ...] = ()
) -> tuple[dict, Path]:
    """Return annotations as the content of a COCO-format file, and the folder of the images.

    Args:
        kind: ``"yolo"``, ``"voc"`` or ``"labelme"``.
        path: the annotations, see :func:`e3va.data.locations.find_kind`.
        images: folder of the images, or None.
        split: YOLO's ``"train"`` or ``"val"``; name of VOC's list of images, "" for all images.
        names: class names of Pascal VOC and labelme; () for those in the files.

    Raises:
        UserError: the annotations have a mistake, or supervision is not installed.
    """
    if kind == "yolo":
        return read_yolo(path, split, images)
    if kind == "voc":
        return read_voc(path, split, names, images)
    return read_labelme(path, names, images)


def load_coco(file: Path) -> dict:
    """Return the content of a COCO-format file; raise UserError if it is one of labelme."""
    data = load_json(file)
    if "shapes" in data and "annotations" not in data:
        raise UserError(f"{file} is a file of labelme: name its folder, {file.parent}")
    return data


def _voc_list(folder: Path, split: str) -> str:
    """Return the list of images to read for a split, "" for all images if there is none."""
    names = ("train", "trainval") if split == "train" else ("val",)
    return next((name for name in names if list_path(folder, name).is_file()), "")


def read_class_names(path: str | os.PathLike, images: str | os.PathLike | None = None) -> list[str]:
    """Return the class names that :func:`read_annotations` finds; images need not exist."""
    del images
    kind, file = find_kind(Path(path).expanduser())
    if kind == "coco":
        return category_names(load_coco(file), file)
    if kind == "yolo":
        names = list(yolo_classes(file).values())
    else:
        names = (voc_classes if kind == "voc" else labelme_classes)(file)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return category_names({"categories": categories}, file)


def own_validation(path: str | os.PathLike) -> bool:
    """Return whether a path of annotations also names validation data of its own.

    These are the ``val`` of a ``data.yaml``, or the list ``val.txt`` of Pascal VOC beside
    ``train.txt``.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return False
    kind, file = find_kind(path)
    if kind == "yolo":
        return has_split(load_yaml(file), "val")
    return kind == "voc" and all(list_path(file, name).is_file() for name in ("train", "val"))
