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
from .image_files import Found
from .labelme import labelme_classes, read_labelme
from .locations import find_image_root, find_kind
from .voc import find_list, list_path, read_voc, voc_classes
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
        split: split to read, ``"train"``, ``"val"`` or ``"test"``, where ``path`` names several:
            YOLO's ``data.yaml``, or Pascal VOC's lists such as ``train.txt``.

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
        return read_content(data, file, root or find_image_root(file, data.get("images")), options)
    if kind == "voc":
        split = _voc_list(file, split)
    # The masks of validation data are those that the model learns, also from rectangles.
    masks = bool(options.masks) and split != "train"
    found = load_content(kind, file, root, split, options.classes, masks)
    _check_classes(found.content, file, options.classes)
    data = read_content(found.content, file, found.root, options)
    data.notes.update(note.kind for note in found.notes)
    return data


def _check_classes(content: dict, file: Path, classes: tuple[str, ...]) -> None:
    """Check that all objects have a class; those of other classes have a text instead of an id."""
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        if isinstance(annotation["category_id"], str):
            raise UserError(
                f"{file}: an object of {names[annotation['image_id']]} has the "
                f"{annotation['category_id']}, expected a class of the model or of its training "
                f"data: {', '.join(classes)}; correct the name, or train with that class too"
            )


def load_content(
    kind: str,
    path: Path,
    images: Path | None,
    split: str,
    names: tuple[str, ...] = (),
    masks: bool = False,
) -> Found:
    """Return annotations of another format as the content of a COCO-format file.

    Args:
        kind: ``"yolo"``, ``"voc"`` or ``"labelme"``.
        path: the annotations, see :func:`e3va.data.locations.find_kind`.
        images: folder of the images, or None.
        split: name of YOLO's split, or of VOC's list of images; "" for all images of VOC.
        names: class names of Pascal VOC and labelme; () for those in the files.
        masks: whether labelme's rectangles become masks even if no other shape is one.

    Raises:
        UserError: the annotations have a mistake, or supervision is not installed.
    """
    if kind == "yolo":
        return read_yolo(path, split, images)
    if kind == "voc":
        return read_voc(path, split, names, images)
    return read_labelme(path, names, images, masks)


def load_coco(file: Path) -> dict:
    """Return the content of a COCO-format file; raise UserError if it is one of labelme."""
    data = load_json(file)
    if "shapes" in data and "annotations" not in data:
        raise UserError(f"{file} is a file of labelme: name its folder, {file.parent}")
    return data


def _voc_list(folder: Path, split: str) -> str:
    """Return the list of images to read for a split, "" for all images if there are no lists."""
    listed = find_list(folder, split)
    if split == "val" and not listed and (other := find_list(folder, "train")):
        raise UserError(
            f"{list_path(folder, other)} lists the images to train on, but there is no val.txt or "
            "test.txt beside it: list the validation images there, or name another folder"
        )
    return listed


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


def own_validation(path: str | os.PathLike) -> str:
    """Return the name of the validation data that a path of annotations names itself, or "".

    These are the ``val`` of a ``data.yaml``, or a list of Pascal VOC beside that of the training
    images: ``val.txt`` or ``test.txt``.
    """
    path = Path(path).expanduser()
    if not path.exists():
        return ""
    kind, file = find_kind(path)
    if kind == "yolo":
        return "val" if has_split(load_yaml(file), "val") else ""
    return find_list(file, "val") if kind == "voc" and find_list(file, "train") else ""


def scored_split(path: str | os.PathLike) -> str:
    """Return the split to score: ``"val"`` if the annotations name one, or ``test``, or ``train``.

    It is ``"val"`` for annotations without splits.
    """
    kind, file = find_kind(Path(path).expanduser())
    if kind == "yolo":
        data = load_yaml(file)
        return next((split for split in ("val", "test", "train") if has_split(data, split)), "val")
    only_train = kind == "voc" and find_list(file, "train") and not find_list(file, "val")
    return "train" if only_train else "val"
