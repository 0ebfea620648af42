"""Read the XML files of Pascal VOC as COCO-format data.

supervision reads the objects, see :mod:`e3va.data.formats` for why. Which images there are, their
sizes and lists are read here: it decodes every image, and skips XML files whose image is missing.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

from ..utils.errors import UserError, brief
from ..utils.optional import require
from .image_files import Found, Note, names_by_stem, size_of, walk
from .locations import find_xml_folder, visible_files

PURPOSE = "reading Pascal VOC"
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def list_path(folder: Path, name: str) -> Path:
    """Return the path of a list of image names."""
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def find_list(folder: Path, split: str) -> str:
    """Return the name of the list of images of a split; "" if there is none.

    The split is ``"train"``, ``"val"`` or ``"test"``. The images of ``val.txt`` validate, or those
    of ``test.txt``; this one comes first beside ``trainval.txt`` without ``train.txt``, since
    ``trainval.txt`` has the images of ``val.txt`` too.
    """
    names = {"train": ["train", "trainval"], "val": ["val", "test"], "test": ["test"]}[split]
    if split == "val" and find_list(folder, "train") == "trainval":
        names.reverse()
    return next((name for name in names if list_path(folder, name).is_file()), "")


def read_voc(
    folder: Path, listed: str = "", names: tuple[str, ...] = (), images: Path | None = None
) -> Found:
    """Read the boxes of a folder as the content of a COCO-format file.

    Boxes become 0-based as in Detectron2: 1 is subtracted from ``xmin`` and ``ymin``. Objects that
    are ``difficult`` are objects like others.

    Args:
        folder: folder of VOC, or folder of XML files.
        listed: name of a list of images in ``ImageSets/Main``; "" for all images.
        names: class names. The default is VOC's twenty if these include all classes of the folder's
            files, and otherwise the classes of the files, sorted.
        images: folder of the images; None to look for it beside the XML files.

    Raises:
        UserError: there is no such list, an XML file is malformed, or the images are not found.
    """
    root = find_xml_folder(folder) or folder
    every = visible_files(root, ".xml")
    if not listed:  # a check of all images covers the lists of training
        for name in filter(None, (find_list(folder, split) for split in ("train", "val"))):
            _listed_files(folder, root, name)
    files = _listed_files(folder, root, listed) if listed else every
    read = {file: _read(file) for file in dict.fromkeys([*every, *files])}
    names = names or _classes(read.values())
    index = {name: number for number, name in enumerate(names, 1)}
    images = images or _find_root(folder, root, files)
    stems = names_by_stem(images)
    records, annotations = [], []
    for number, file in enumerate(files, 1):
        header, objects = read[file]
        records.append({"id": number, **_image(file, header, images, stems)})
        for name, box in objects:
            record = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
            category = index.get(name, f"class {name}")  # refused by the reader of the content
            annotations.append({**record, "category_id": category, "bbox": box})
    categories = [{"id": number, "name": name} for name, number in index.items()]
    content = {"images": records, "annotations": annotations, "categories": categories}
    below = [file for file in walk(root) if file.suffix.lower() == ".xml" and file.parent != root]
    return Found(content, images, [Note("unread", f, "the file is in a subfolder") for f in below])


def voc_classes(folder: Path) -> tuple[str, ...]:
    """Return VOC's twenty classes if all classes of a folder are among them, or those, sorted."""
    return _classes(map(_read, visible_files(find_xml_folder(folder) or folder, ".xml")))


def _classes(read: Iterable[tuple[dict, list[tuple[str, list[float]]]]]) -> tuple[str, ...]:
    found = {name for _, objects in read for name, _ in objects}
    return CLASSES if found <= set(CLASSES) else tuple(sorted(found))


def _listed_files(folder: Path, root: Path, name: str) -> list[Path]:
    listed = list_path(folder, name)
    if not listed.is_file():
        raise UserError(f"no file {listed}: expected the image names of the split, one a line")
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listed} cannot be read ({brief(error)}): expected image names") from None
    return [_listed_file(line.strip(), root, listed) for line in lines if line.strip()]


def _listed_file(line: str, root: Path, listed: Path) -> Path:
    """Return the XML file of a line: a name, which may have spaces, and perhaps -1, 0 or 1."""
    stems = dict.fromkeys([line, re.sub(r"\s+-?[01]$", "", line)])
    files = [root / f"{stem}.xml" for stem in stems]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{listed} lists {line!r}, but there is no {files[-1]}: correct the list, or add the "
            "file"
        )
    return found


def _read(file: Path) -> tuple[dict[str, Any], list[tuple[str, list[float]]]]:
    """Return the file name and size in an XML file, and each object's class and COCO box."""
    reader = require("supervision.dataset.formats.pascal_voc", PURPOSE)
    parser = require("defusedxml.ElementTree", PURPOSE)
    try:
        tree = parser.parse(file).getroot()
        if tree.tag != "annotation":
            raise ValueError(f"its root is <{tree.tag}>")
        # The size is that of masks, which are not used: they would be drawn in full.
        found, names = reader.detections_from_xml_obj(tree, [], (1, 1))
        size = [int(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height")]
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        raise UserError(
            f"{file} is not an annotation file of Pascal VOC ({brief(error)}): expected "
            "<annotation> with objects that have a name and a bndbox"
        ) from None
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in found.xyxy.tolist()]
    name = PureWindowsPath((tree.findtext("filename") or "").strip()).name
    header = {"name": name, "size": size if min(size) > 0 else None}
    return header, [(names[k].strip(), box) for k, box in zip(found.class_id, boxes, strict=True)]


def _image(file: Path, header: dict[str, Any], root: Path, stems: dict[str, list[str]]) -> dict:
    """Return the file name and size of an image.

    An XML file belongs to the image of the same stem, as in Pascal VOC: the name inside it may be
    that of an earlier copy. Only if there is no such image, the name inside it counts.
    """
    written = header["name"]
    names = stems.get(file.stem) or stems.get(Path(written).stem) or [written or f"{file.stem}.jpg"]
    name = written if written in names else names[0]
    width, height = header["size"] or size_of(root / name)
    return {"file_name": name, "width": width, "height": height}


def _find_root(folder: Path, root: Path, files: list[Path]) -> Path:
    """Return the folder of the images, which has one of the first files' images."""
    parents = dict.fromkeys([folder, root.parent])
    places = [parent / name for parent in parents for name in ("JPEGImages", "images", "Images")]
    places = [place for place in (*places, root, root.parent) if place.is_dir()]
    for place in places:
        stems = names_by_stem(place)
        if any(file.stem in stems for file in files[:20]):
            return place
    if (folder / "JPEGImages").is_dir():
        return folder / "JPEGImages"
    raise UserError(
        f"the images of {folder} are not beside its XML files (looked for an image "
        f"{files[0].stem if files else ''} in {', '.join(map(str, places))}): name their folder "
        "with --images"
    )
