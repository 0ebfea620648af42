"""Read the XML files of Pascal VOC as COCO-format data, so that one check serves both."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ..utils.errors import UserError, brief

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def read_voc(folder: Path, split: str = "", names: tuple[str, ...] = ()) -> dict:
    """Read the boxes of a folder as the content of a COCO-format file.

    Boxes become 0-based as in Detectron2: 1 is subtracted from ``xmin`` and ``ymin``. ``split``
    names a list of images in ``ImageSets/Main``. Without ``names``, the classes are VOC's twenty
    if these include all classes of the files, and otherwise the classes of the files.
    """
    root = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = sorted(root.glob("*.xml"))
    if split:
        listed = folder / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise UserError(f"no file {listed}: expected the image names of the split, one a line")
        stems = [line.split()[0] for line in listed.read_text().splitlines() if line.strip()]
        files = [root / f"{stem}.xml" for stem in stems]
    images, objects = [], []
    for number, file in enumerate(files, 1):
        image, boxes = _read(file, number)
        images.append(image)
        objects += boxes
    found = sorted({name for name, _ in objects})
    names = names or (CLASSES if set(found) <= set(CLASSES) else tuple(found))
    index = {name: number for number, name in enumerate(names, 1)}
    annotations = [
        {**box, "id": number, "category_id": index.get(name, name)}
        for number, (name, box) in enumerate(objects, 1)
    ]
    categories = [{"id": number, "name": name} for name, number in index.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read(file: Path, number: int) -> tuple[dict, list[tuple[str, dict]]]:
    """Return an image record, and the class name and annotation record of each object."""
    objects = []
    try:
        tree = ElementTree.parse(file)
        size = {key: int(tree.findtext(f"size/{key}", "")) for key in ("width", "height")}
        for item in tree.findall("object"):
            x1, y1, x2, y2 = (
                float(item.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
            box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
            record = {"image_id": number, "bbox": box, "iscrowd": 0}
            objects.append((item.findtext("name", "").strip(), record))
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not an annotation file of Pascal VOC ({brief(error)}): expected a size, "
            "and objects with name and bndbox"
        ) from None
    return {"id": number, "file_name": f"{file.stem}.jpg", **size}, objects
