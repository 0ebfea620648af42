"""Files of YOLO, Pascal VOC and labelme, with the same square of 20×20 pixels."""

import json

import pytest
from PIL import Image

from e3va import UserError
from e3va.data.coco import ReadOptions
from e3va.data.formats import read_annotations

SIZE = (64, 48)
# The 20×20 square at x 10, y 5, as each format writes it.
SQUARE = [10, 5, 20, 20]
YOLO_SQUARE = f"{20 / 64} {15 / 48} {20 / 64} {20 / 48}"
POINTS = [[10, 5], [30, 5], [30, 25], [10, 25]]
VOC_SQUARE = ("cat", 11, 6, 30, 25)  # the first and the last pixel, from 1
ANY_MASKS = ReadOptions(masks=None)


def save(path, size=SIZE, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **settings)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(path, images=None, options=ANY_MASKS, split="train"):
    """Return the class, and the box to 0.001 pixels, of each object by the image's file name."""
    data = read_annotations(path, images, options, split)
    return {
        image["file_name"]: [
            (data.class_names[data.class_index[a["category_id"]]], [round(v, 3) for v in a["bbox"]])
            for a in data.annotations[image["id"]]
        ]
        for image in data.images
    }


def refused(path, *values, **settings):
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    for value in values:
        assert str(value) in str(caught.value)


def xml(*objects, size=SIZE, filename="a.jpg"):
    """Return a file of Pascal VOC; an object is (class, xmin, ymin, xmax, ymax)."""
    items = "".join(
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox><part><name>head</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for name, x1, y1, x2, y2 in objects
    )
    header = f"<filename>{filename}</filename>" if filename else ""
    header += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation>{header}{items}</annotation>"


def shape(label, points, kind="polygon", **entries):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **entries}


def labelme(folder, *shapes, name="a", **entries):
    save(folder / f"{name}.jpg")
    size = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg"}
    write(folder / f"{name}.json", json.dumps({**content, **size, "imageData": None, **entries}))
    return folder
