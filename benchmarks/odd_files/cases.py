"""Small data sets, each with one oddity of real files.

Most start from two images of 64×48 pixels with one square of 20×20 pixels each, in COCO format.
"""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Data = dict[str, Any]  # content of a COCO-format file
WIDTH, HEIGHT, SIDE = 64, 48, 20
SQUARE = [8, 8, 28, 8, 28, 28, 8, 28]  # a polygon
INSIDE = [2, 3, 30, 40]  # x, y, width and height of a box around nothing
RLE = [8 * HEIGHT + 8, *([SIDE, HEIGHT - SIDE] * SIDE)]  # run lengths of the square, by columns
RLE[-1] = HEIGHT * WIDTH - sum(RLE[:-1])


@dataclass
class Case:
    """A data set: its annotations and images, and further arguments of the commands."""

    annotations: Path  # a file, or a folder of label maps
    images: Path | None
    labels: bool = False
    classes: str = ""  # names for label maps
    options: tuple[str, ...] = ()  # of e3va train
    overrides: tuple[str, ...] = ()  # of a Detectron2 config
    model: str = "cascade_mask_rcnn"  # in the name of the Detectron2 config
    pixels: bool = False  # whether the table has the mean of the first image that is read


CASES: dict[str, Callable[[Path], Case]] = {}


def _case(title: str) -> Callable:
    def register(build: Callable[[Path], Case]) -> Callable[[Path], Case]:
        CASES[title] = build
        return build

    return register


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    """Write a picture with a bright square where :data:`SQUARE` is."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    pixels[8:28, 8:28] = (220, 180, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def base(folder: Path, names: tuple[str, ...] = ("1.png", "2.png")) -> Data:
    """Write the pictures, and return the content of their COCO-format file."""
    for name in names:
        picture(folder / "images" / name)
    size = {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": n, "file_name": name, **size} for n, name in enumerate(names, 1)],
        "annotations": [_square(n, n) for n in range(1, len(names) + 1)],
        "categories": [{"id": 1, "name": "square"}],
    }


def _square(identity: Any, image: int, **changes: Any) -> dict[str, Any]:
    record = {"id": identity, "image_id": image, "category_id": 1, "bbox": [8, 8, SIDE, SIDE]}
    return {**record, "area": SIDE**2, "iscrowd": 0, "segmentation": [SQUARE], **changes}


def save(folder: Path, data: Data, start: bytes = b"", **options: Any) -> Case:
    """Write a COCO-format file, and return its case."""
    path = folder / "train.json"
    path.write_bytes(start + json.dumps(data).encode())
    return Case(path, folder / "images", **options)


def _changed(title: str, change: Callable[[Data], object], **options: Any) -> None:
    """Register a case in which ``change`` alters the content of the base file."""

    def build(folder: Path) -> Case:
        data = base(folder)
        change(data)
        return save(folder, data, **options)

    CASES[title] = build


def _every(**changes: Any) -> Callable[[Data], None]:
    """Return a change of all annotations."""
    return lambda data: [a.update(copy.deepcopy(changes)) for a in data["annotations"]]


def _first(**changes: Any) -> Callable[[Data], None]:
    """Return a change of the first annotation."""
    return lambda data: data["annotations"][0].update(changes)


def _rle(counts: Any) -> Callable[[Data], None]:
    return _first(segmentation={"size": [HEIGHT, WIDTH], "counts": counts})


def _add_class(name: str, **fields: Any) -> Callable[[Data], None]:
    def change(data: Data) -> None:
        data["categories"].append({"id": 2, "name": name, **fields})
        polygon = [30, 8, 50, 8, 50, 28, 30, 28]
        box = {"bbox": [30, 8, SIDE, SIDE], "segmentation": [polygon]}
        data["annotations"].append(_square(3, 1, category_id=2, **box))

    return change


# 1. Wrong results without a word
_changed("annotation ids from 0", lambda d: [a.update(id=a["id"] - 1) for a in d["annotations"]])


@_case("label maps of 0 and 255, two classes")
def _labels_0_255(folder: Path) -> Case:
    return _label_case(folder, 255)


def _label_case(folder: Path, value: int, suffix: str = ".png", classes: str = "ground,square"):
    for number in (1, 2):
        picture(folder / "images" / f"{number}.png")
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[8:28, 8:28] = value
        (folder / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels).save(folder / "labels" / f"{number}{suffix}", format="PNG")
    return Case(folder / "labels", folder / "images", True, classes, model="semantic_fpn")


@_case("label maps in which a named class never occurs")
def _labels_unused(folder: Path) -> Case:
    return _label_case(folder, 1, classes="ground,square,circle")


_changed("RLE that is too short", _rle([10, 20]))


@_case("images of 16 bits")
def _deep(folder: Path) -> Case:
    data = base(folder)
    pixels = np.full((HEIGHT, WIDTH), 90 * 257, np.uint16)
    pixels[8:28, 8:28] = 220 * 257
    for name in ("1.png", "2.png"):
        Image.fromarray(pixels).save(folder / "images" / name)
    return save(folder, data, pixels=True)


@_case("images of floating-point numbers")
def _float(folder: Path) -> Case:
    data = base(folder, ("1.tif", "2.tif"))
    for name in ("1.tif", "2.tif"):
        Image.fromarray(
            np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, -1)
        ).save(folder / "images" / name)
    return save(folder, data, pixels=True)


def _many(data: Data) -> None:
    boxes = [(x, y) for x in range(0, 60, 3) for y in range(0, 48, 4)]
    data["annotations"] = [
        _square(
            n, 1, bbox=[x, y, 2, 3], area=6, segmentation=[[x, y, x + 2, y, x + 2, y + 3, x, y + 3]]
        )
        for n, (x, y) in enumerate(boxes, 1)
    ]


_changed("240 objects in an image, default cap", _many)
_changed(
    "240 objects in an image, cap of 300",
    _many,
    options=("--max-detections", "300"),
    overrides=("data.max_detections=300",),
)
_changed("two categories of one name", _add_class("square"))
_changed(
    "unused parent category",
    lambda d: (
        d["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        or d["categories"][1].update(supercategory="shapes")
    ),
)
_changed("an image without objects", lambda d: d["annotations"].pop())
_changed(
    "repeated image record",
    lambda d: (
        d["images"].append({**d["images"][0], "id": 9}) or d["annotations"].append(_square(9, 9))
    ),
)
_changed("the same image record twice", lambda d: d["images"].append(dict(d["images"][0])))

# 2. Crashes
_changed("iscrowd: null", _every(iscrowd=None))
_changed("area: null", _every(area=None))
_changed("area: text", _every(area="400"))
_changed(
    "annotation ids that are text", lambda d: [a.update(id=f"a{a['id']}") for a in d["annotations"]]
)
_changed("a class name that is a number", lambda d: d["categories"][0].update(name=7))
_changed("RLE that is too long", _rle([10, 20, 9000]))
_changed("RLE with a negative run", _rle([10, -20, HEIGHT * WIDTH + 10]))
_changed("RLE of garbage", _rle("~~not run lengths"))
_changed(
    "a box of width 1e-7",
    lambda d: d["annotations"].append(
        _square(3, 1, bbox=[30, 8, 1e-7, 20], segmentation=[[30, 8, 30, 28, 30, 18]])
    ),
)


def _sizes(title: str, *sizes: tuple[int, int]) -> None:
    def build(folder: Path) -> Case:
        data = base(folder)
        for number, (width, height) in enumerate(sizes, 1):
            picture(folder / "images" / f"{number}.png", (width, height))
            x, y, w, h = width // 4, height // 4, max(1, width // 2), max(1, height // 2)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            data["images"][number - 1].update(width=width, height=height)
            box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]}
            data["annotations"][number - 1].update(box)
        return save(folder, data)

    CASES[title] = build


_sizes("images of 6000×2 and 4000×2", (6000, 2), (4000, 2))
_sizes("images of 1×6000 and 1×4000", (1, 6000), (1, 4000))
_sizes("images of 260×1 and 1×1", (260, 1), (1, 1))


@_case("file names that are not UTF-8")
def _not_utf8(folder: Path) -> Case:
    names = tuple(os.fsdecode(f"caf{number}-".encode() + b"\xe9.png") for number in (1, 2))
    return save(folder, base(folder, names))


@_case("images of 200 megapixels")
def _huge(folder: Path) -> Case:
    data = base(folder)
    for record in data["images"]:
        record.update(width=20000, height=10000)
        Image.new("L", (20000, 10000), 90).save(folder / "images" / record["file_name"])
    return save(folder, data)


# 4. Usable files
@_case("UTF-8 with BOM")
def _bom(folder: Path) -> Case:
    return save(folder, base(folder), b"\xef\xbb\xbf")


@_case("backslashes in file_name")
def _backslashes(folder: Path) -> Case:
    data = base(folder, ("set/1.png", "set/2.png"))
    for record in data["images"]:
        record["file_name"] = record["file_name"].replace("/", "\\")
    return save(folder, data)


def _as_text(data: Data) -> None:
    for record in [*data["images"], *data["annotations"], *data["categories"]]:
        for key, value in record.items():
            if isinstance(value, int):
                record[key] = str(value)
    for annotation in data["annotations"]:
        annotation["bbox"] = [str(value) for value in annotation["bbox"]]
        annotation["segmentation"] = [[str(value) for value in SQUARE]]


_changed("numbers written as text", _as_text)
_changed("sizes such as 64.0", lambda d: [i.update(width=64.0, height=48.0) for i in d["images"]])
_changed("ids such as 1.0", lambda d: [r.update(id=float(r["id"])) for k in d for r in d[k]])
_changed("flat polygons", _every(segmentation=SQUARE))
_changed("polygons nested once too often", _every(segmentation=[[SQUARE]]))
_changed("polygons of [x, y] pairs", _every(segmentation=[[[8, 8], [28, 8], [28, 28], [8, 28]]]))
_changed("RLE in a list", _every(segmentation=[{"size": [HEIGHT, WIDTH], "counts": RLE}]))
_changed(
    "an empty segmentation among good ones",
    lambda d: d["annotations"].append(_square(3, 1, segmentation=[])),
)
_changed("all objects iscrowd 1", _every(iscrowd=1))
_changed(
    "all objects iscrowd 1, with the option",
    _every(iscrowd=1),
    options=("--use-crowds",),
    overrides=("data.use_crowds=true",),
)


@_case("label maps named a.PNG")
def _upper_labels(folder: Path) -> Case:
    return _label_case(folder, 1, ".PNG")


@_case("label maps for images .JPG and .jfif")
def _suffixes(folder: Path) -> Case:
    case = _label_case(folder, 1)
    for number, suffix in ((1, ".JPG"), (2, ".jfif")):
        (folder / "images" / f"{number}.png").unlink()
        picture(folder / "images" / f"{number}{suffix}", format="JPEG")
    return case


@_case("hidden files beside images and label maps")
def _hidden(folder: Path) -> Case:
    case = _label_case(folder, 1)
    for name in ("images/._1.png", "labels/._1.png", "images/.DS_Store"):
        (folder / name).write_bytes(b"\0\5\26\7 not a picture")
    return case


def _missing(title: str, **options: Any) -> None:
    def build(folder: Path) -> Case:
        data = base(folder)
        (folder / "images" / "2.png").unlink()
        return save(folder, data, **options)

    CASES[title] = build


_missing("a missing image")
_missing(
    "a missing image, with the option",
    options=("--skip-missing",),
    overrides=("data.skip_missing=true",),
)


def _turned(title: str, upright: bool) -> None:
    def build(folder: Path) -> Case:
        data = base(folder, ("1.jpg", "2.jpg"))
        for record in data["images"]:
            exif = Image.Exif()
            exif[0x0112] = 6  # turn by 90° to the right
            picture(folder / "images" / record["file_name"], exif=exif)
            if upright:
                record.update(width=HEIGHT, height=WIDTH)
        if upright:  # the square's corner (8, 8) turns to (48 - 28, 8)
            for annotation in data["annotations"]:
                annotation["bbox"] = [20, 8, 20, 20]
                annotation["segmentation"] = [[20, 8, 40, 8, 40, 28, 20, 28]]
        return save(folder, data)

    CASES[title] = build


_turned("EXIF-turned photos, annotated upright", True)
_turned("EXIF-turned photos, annotated as stored", False)

# 5. Boxes, and other formats
_changed(
    "boxes without masks",
    lambda d: [a.pop("segmentation") for a in d["annotations"]],
    model="retinanet",
)


@_case("a YOLO folder")
def _yolo(folder: Path) -> Case:
    for number, split in ((1, "train"), (2, "val")):
        picture(folder / split / "images" / f"{number}.png")
        (folder / split / "labels").mkdir()
        box = (18 / WIDTH, 18 / HEIGHT, SIDE / WIDTH, SIDE / HEIGHT)
        text = " ".join(["0", *(f"{value:.6f}" for value in box)])
        (folder / split / "labels" / f"{number}.txt").write_text(text + "\n")
    path = folder / "data.yaml"
    path.write_text("train: train/images\nval: val/images\nnc: 1\nnames: [square]\n")
    return Case(path, None, model="retinanet")


@_case("a folder of Pascal VOC")
def _voc(folder: Path) -> Case:
    for number in (1, 2):
        picture(folder / "JPEGImages" / f"{number}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{number}.xml").write_text(
            f"<annotation><filename>{number}.jpg</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>3</depth></size><object><name>square</name><bndbox>"
            "<xmin>9</xmin><ymin>9</ymin><xmax>28</xmax><ymax>28</ymax></bndbox></object>"
            "</annotation>"
        )
    return Case(folder, folder / "JPEGImages", model="retinanet")


@_case("a folder of labelme's files")
def _labelme(folder: Path) -> Case:
    points = [[8, 8], [28, 8], [28, 28], [8, 28]]
    for number in (1, 2):
        picture(folder / f"{number}.png")
        shape = {"label": "square", "points": points, "shape_type": "polygon", "flags": {}}
        size = {"imageWidth": WIDTH, "imageHeight": HEIGHT}
        data = {"version": "5.4", "shapes": [shape], "imagePath": f"{number}.png", **size}
        (folder / f"{number}.json").write_text(json.dumps({**data, "imageData": None}))
    return Case(folder, folder)
