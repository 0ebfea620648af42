"""YOLO folders, Pascal VOC and labelme: odd files as people have them, with boxes by hand."""

import base64
import io
import json
import sys

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from e3va import UserError
from e3va.data.coco import ReadOptions
from e3va.data.formats import (
    own_validation,
    read_annotations,
    read_class_names,
    scored_split,
)
from e3va.data.voc import CLASSES

SIZE = (64, 48)
# The 20×20 square at x 10, y 5, as each format writes it.
SQUARE = [10, 5, 20, 20]
YOLO_SQUARE = f"{20 / 64} {15 / 48} {20 / 64} {20 / 48}"
POINTS = [[10, 5], [30, 5], [30, 25], [10, 25]]
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


@pytest.fixture
def yolo(tmp_path):
    """Two classes; a.jpg has a red square, b.jpg no label file, and val's c.jpg a blue one."""
    root = tmp_path / "yolo"
    write(root / "data.yaml", "names: [red, blue]\ntrain: images/train\nval: images/val\n")
    for name in ("train/a", "train/b", "val/c"):
        save(root / "images" / f"{name}.jpg")
    write(root / "labels/train/a.txt", f"0 {YOLO_SQUARE}\n")
    write(root / "labels/val/c.txt", f"1 {YOLO_SQUARE}\n")
    return root


# --- YOLO


def test_yolo_reads_the_split_that_is_named(yolo):
    expected = {"a.jpg": [("red", SQUARE)], "b.jpg": []}
    assert read(yolo) == read(yolo / "data.yaml") == expected
    assert read(yolo, split="val") == {"c.jpg": [("blue", SQUARE)]}
    assert own_validation(yolo) and own_validation(yolo / "data.yaml")
    assert read_class_names(yolo) == ["red", "blue"]


@pytest.mark.parametrize(
    "text",
    [
        "names:\n  1: blue\n  0: red\ntrain: images/train\n",
        "path: .\nnames: {0: red, 1: blue}\ntrain: [images/train]\n",
        "\ufeffnames: [red, blue]\r\ntrain: ../images/train\r\n",  # as Roboflow writes it
        "names: [red, blue]\ntrain: list.txt\n",
        "path: /gone/elsewhere\nnames: [red, blue]\ntrain: images/train\n",
    ],
)
def test_yaml_files_of_several_tools(yolo, text):
    write(yolo / "data.yaml", text)
    write(yolo / "list.txt", "./images/train/a.jpg\nimages/train/b.jpg\n\n")
    assert read(yolo) == {"a.jpg": [("red", SQUARE)], "b.jpg": []}
    assert not own_validation(yolo)
    refused(yolo, yolo / "data.yaml", "val", split="val")


def test_class_numbers_with_gaps_keep_their_names(yolo):
    write(yolo / "data.yaml", "names: {0: red, 7: blue}\ntrain: images/train\n")
    write(yolo / "labels/train/a.txt", f"7 {YOLO_SQUARE}\n")
    assert read(yolo)["a.jpg"] == [("blue", SQUARE)]
    assert read_class_names(yolo) == ["red", "blue"]


@pytest.mark.parametrize(
    "line",
    [
        f"0 {YOLO_SQUARE} 0.9\n",  # a confidence
        f"\r\n0 {YOLO_SQUARE}\r\n\r\n",
        f"0.0 {YOLO_SQUARE}",
        f"\ufeff0 {YOLO_SQUARE}\n",
    ],
)
def test_lines_of_several_tools(yolo, line):
    write(yolo / "labels/train/a.txt", line)
    assert read(yolo)["a.jpg"] == [("red", SQUARE)]


def test_a_box_that_rounding_makes_larger_than_the_image(yolo):
    write(yolo / "labels/train/a.txt", "0 0.5 0.5 1.0000002 1\n")
    assert read(yolo)["a.jpg"] == [("red", [0, 0, 64, 48])]


def test_empty_and_missing_label_files_are_images_without_objects(yolo):
    write(yolo / "labels/train/b.txt", "")
    save(yolo / "images/train/deep/d.PNG")
    assert {name: len(found) for name, found in read(yolo).items()} == {
        "a.jpg": 1,
        "b.jpg": 0,
        "deep/d.PNG": 0,
    }
    training = ReadOptions(masks=None, training=True)
    assert list(read(yolo, options=training)) == ["a.jpg"]


def test_hidden_files_are_no_images(yolo):
    write(yolo / "images/train/._a.jpg", b"\0\5\x16\7")
    write(yolo / "images/train/.cache/x.jpg", b"")
    assert list(read(yolo)) == ["a.jpg", "b.jpg"]


def test_linked_images_and_folders_have_their_labels(yolo, tmp_path):
    store = tmp_path / "store"
    save(store / "x.jpg")
    (yolo / "images/train/a.jpg").unlink()
    (yolo / "images/train/a.jpg").symlink_to(store / "x.jpg")
    (yolo / "images/train/more").symlink_to(store, target_is_directory=True)
    (yolo / "images/train/back").symlink_to("..", target_is_directory=True)
    write(yolo / "labels/train/more/x.txt", f"1 {YOLO_SQUARE}\n")
    expected = {"a.jpg": [("red", SQUARE)], "b.jpg": [], "more/x.jpg": [("blue", SQUARE)]}
    assert read(yolo) == read(yolo, yolo / "images/train") == expected
    write(yolo / "data.yaml", "names: [red, blue]\ntrain: list.txt\n")
    write(yolo / "list.txt", "images/train/a.jpg\nimages/train/b.jpg\n")
    assert read(yolo) == {"a.jpg": [("red", SQUARE)], "b.jpg": []}


@pytest.mark.parametrize("labels", ["linked", "stored"])
def test_a_linked_folder_of_yolo_images(labels, yolo, tmp_path):
    (tmp_path / "store").mkdir()
    (yolo / "images/train").rename(tmp_path / "store/images")
    (yolo / "images/train").symlink_to(tmp_path / "store/images", target_is_directory=True)
    if labels == "stored":
        (yolo / "labels/train").rename(tmp_path / "store/labels")
    assert read(yolo) == {"a.jpg": [("red", SQUARE)], "b.jpg": []}
    assert read(yolo, tmp_path / "store/images") == {"a.jpg": [("red", SQUARE)], "b.jpg": []}


def test_label_files_without_an_image_are_counted(yolo):
    for name in ("train/c", "train/deep/d"):
        write(yolo / f"labels/{name}.txt", f"1 {YOLO_SQUARE}\n")
    Image.new("RGB", SIZE).save(yolo / "images/train/c.gif")  # a suffix that is not read
    write(yolo / "labels/train/classes.txt", "red\nblue\n")
    data = read_annotations(yolo, None, ANY_MASKS)
    assert data.notes == {"unread": 2} and "2 annotation files" in data.summary()
    assert not read_annotations(yolo, None, ANY_MASKS, "val").notes


def test_names_of_yolo_classes_stay_as_they_are_written(yolo):
    for names in ("[yes, no]", "{0: yes, 1: no}"):
        write(yolo / "data.yaml", f"names: {names}\ntrain: images/train\n")
        assert read_class_names(yolo) == ["yes", "no"]


@pytest.mark.parametrize("line", ["0 0.5 0.5 0.2 0.2 0.9 17", "0 32 24 10 10"])
def test_lines_with_coordinates_far_beyond_the_image_are_refused(yolo, line):
    write(yolo / "labels/train/a.txt", line)
    refused(yolo, yolo / "labels/train/a.txt", line, {"7": 17, "0": 32}[line[-1]])


def test_the_split_that_is_scored(yolo, voc, drawn):
    assert scored_split(yolo) == scored_split(voc) == scored_split(drawn.json) == "val"
    write(yolo / "data.yaml", "names: [red, blue]\ntrain: images/train\ntest: images/val\n")
    assert scored_split(yolo) == "test"
    assert read(yolo, split="test") == {"c.jpg": [("blue", SQUARE)]}
    write(yolo / "data.yaml", "names: [red, blue]\ntrain: images/train\n")
    assert scored_split(yolo) == "train"
    write(voc / "ImageSets/Main/train.txt", "a\n")
    assert scored_split(voc) == "train"
    write(voc / "ImageSets/Main/test.txt", "a\n")
    assert scored_split(voc) == "val"


def test_yolo_polygons_become_masks(yolo):
    triangle = "1 0.25 0.25 0.5 0.25 0.5 0.75"
    write(yolo / "labels/train/a.txt", f"{triangle}\n")
    write(yolo / "labels/train/b.txt", f"{triangle} 0.9\n")
    data = read_annotations(yolo, None, ANY_MASKS)
    assert data.masks
    for image in data.images:
        (found,) = data.annotations[image["id"]]
        assert found["segmentation"] == [[16, 12, 32, 12, 32, 36]]
        assert found["bbox"] == pytest.approx([16, 12, 16, 24])
    boxes = read_annotations(yolo, None, ReadOptions(masks=False))
    assert not boxes.masks and sum(map(len, boxes.annotations.values())) == 2


def test_keypoints_are_no_polygon(yolo):
    write(yolo / "data.yaml", "names: [red]\nkpt_shape: [2, 3]\ntrain: images/train\n")
    write(yolo / "labels/train/a.txt", f"0 {YOLO_SQUARE} .1 .1 2 .9 .9 2\n")
    assert read(yolo)["a.jpg"] == [("red", SQUARE)]
    assert not read_annotations(yolo, None, ANY_MASKS).masks


def test_boxes_of_a_turned_photo_are_those_of_the_upright_one(yolo):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(yolo / "images/train/a.jpg", (48, 64), exif=exif.tobytes())  # 64×48 when it is upright
    assert read(yolo)["a.jpg"] == [("red", SQUARE)]


def test_mistakes_in_yolo_folders(yolo, tmp_path):
    label, yaml = yolo / "labels/train/a.txt", yolo / "data.yaml"
    write(label, f"7 {YOLO_SQUARE}\n")
    refused(yolo, "a.jpg", 7, [0, 1])
    for line in (
        "0 0.5 0.5 0.1",
        "0 0.5 0.5 0.1 x",
        "0 0.5 0.5 0.1 -1",
        "x 1 1 1 1",
        b"\xff\xfe\0",
    ):
        write(label, line)
        refused(yolo, label)
    label.unlink()
    refused(yolo, label, 2)
    refused(yolo, yolo / "images/train", tmp_path, images=yolo / "images/val")
    for text in ("names: [a", "[1]", "train: x", "names: 3"):
        write(yaml, text)
        refused(yolo, yaml)
    write(yaml, "names: [a]\ntrain: images/gone")
    refused(yolo, yaml, yolo / "images/gone")
    write(yaml, "names: {a: b}\ntrain: images/train")
    refused(yolo, yaml)


# --- Pascal VOC


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


VOC_SQUARE = ("cat", 11, 6, 30, 25)  # the first and the last pixel, from 1


@pytest.fixture
def voc(tmp_path):
    save(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", xml(VOC_SQUARE))
    return tmp_path


def test_voc_boxes_are_those_of_detectron2(voc):
    write(voc / "Annotations/a.xml", xml(VOC_SQUARE, ("cow", 1, 1, 64, 48)))
    assert read(voc) == {"a.jpg": [("cat", SQUARE), ("cow", [0, 0, 64, 48])]}
    assert read_class_names(voc) == list(CLASSES)


@pytest.mark.parametrize(
    "text",
    [
        xml(VOC_SQUARE, size=None),
        xml(VOC_SQUARE, size=(0, 0)),
        xml(VOC_SQUARE, filename="IMG_7.jpg"),
        xml(VOC_SQUARE, filename="a"),
        xml(VOC_SQUARE, filename=None),
        xml(("cat", "11.0", 6.0, 30, 25)),
        "\ufeff" + xml(VOC_SQUARE),
    ],
)
def test_xml_files_of_several_tools(voc, text):
    write(voc / "Annotations/a.xml", text)
    assert read(voc) == {"a.jpg": [("cat", SQUARE)]}
    data = read_annotations(voc, None, ANY_MASKS)
    assert (data.images[0]["width"], data.images[0]["height"]) == SIZE


def test_places_and_names_of_voc_images(tmp_path):
    write(tmp_path / "a.xml", xml(VOC_SQUARE, filename="b"))
    write(tmp_path / "._a.xml", b"\0\5\x16\7")
    save(tmp_path / "a.png")
    assert read(tmp_path) == {"a.png": [("cat", SQUARE)]}
    save(tmp_path / "photos/b.PNG")
    assert read(tmp_path, tmp_path / "photos") == {"b.PNG": [("cat", SQUARE)]}
    save(tmp_path / "photos/a.webp")  # the name of the XML file comes first
    assert list(read(tmp_path, tmp_path / "photos")) == ["a.webp"]


def test_lists_of_voc_are_splits(voc):
    for name, list_name in (("b", "val"), ("c", "test")):
        save(voc / f"JPEGImages/{name}.jpg")
        write(voc / f"Annotations/{name}.xml", xml(("my class", 1, 1, 2, 2)))
        write(voc / f"ImageSets/Main/{list_name}.txt", f"{name}\n")
    assert not own_validation(voc)  # training would read its images too
    write(voc / "ImageSets/Main/train.txt", "a 1\n")
    assert own_validation(voc)
    assert read(voc) == {"a.jpg": [("cat", SQUARE)]}
    assert list(read(voc, split="val")) == ["b.jpg"]
    # The classes are those of all files, so that both splits have the same.
    assert read_annotations(voc, None, ANY_MASKS).class_names == ["cat", "my class"]
    (voc / "Annotations/a.xml").unlink()
    refused(voc, voc / "Annotations/a.xml")


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ("train val test", "train", "val"),
        ("train test", "train", "test"),
        ("trainval val test", "trainval", "test"),
        ("trainval val", "trainval", "val"),
        ("train trainval val test", "train", "val"),
    ],
)
def test_images_of_voc_validate_that_are_not_trained_on(voc, lists, train, val):
    for name in lists.split():
        save(voc / f"JPEGImages/{name}.jpg")
        write(voc / f"Annotations/{name}.xml", xml(VOC_SQUARE))
        write(voc / f"ImageSets/Main/{name}.txt", f"{name}\n")
    assert own_validation(voc) == val
    assert list(read(voc)) == [f"{train}.jpg"] and list(read(voc, split="val")) == [f"{val}.jpg"]


def test_voc_without_a_list_of_validation_images_is_no_validation_data(voc):
    assert list(read(voc, split="val")) == ["a.jpg"]  # without any list, all images
    listed = write(voc / "ImageSets/Main/train.txt", "a\n")
    assert not own_validation(voc)
    refused(voc, listed, "val.txt", split="val")


def test_names_with_spaces_in_lists_of_voc(voc):
    for name in ("IMG 1", "IMG", "b 2"):
        save(voc / f"JPEGImages/{name}.jpg")
        write(voc / f"Annotations/{name}.xml", xml(VOC_SQUARE))
    listed = write(voc / "ImageSets/Main/train.txt", "IMG 1\nb 2  -1\n\na  1\n")
    assert list(read(voc)) == ["IMG 1.jpg", "b 2.jpg", "a.jpg"]
    write(listed, "IMG 9\n")
    refused(voc, listed, "IMG 9.xml")


def test_files_in_subfolders_are_counted(voc, tmp_path):
    write(voc / "Annotations/more/b.xml", xml(VOC_SQUARE))
    assert read_annotations(voc, None, ANY_MASKS).notes == {"unread": 1}
    folder = labelme(tmp_path / "labelme", shape("cat", POINTS))
    labelme(folder / "more", shape("cat", POINTS))
    write(folder / "more/other.json", "{}")
    assert read_annotations(folder, None, ANY_MASKS).notes == {"unread": 1}


def test_objects_of_an_unknown_class_are_named(voc, tmp_path):
    folder = labelme(tmp_path / "labelme", shape("zebra", POINTS))
    write(voc / "Annotations/a.xml", xml(VOC_SQUARE, ("zebra", 1, 1, 9, 9)))
    for path in (voc, folder):
        options = ReadOptions(masks=None, classes=("dog", "cat"))
        refused(path, path, "a.jpg", "zebra", "dog, cat", options=options)


def test_classes_of_a_model_are_the_classes_of_voc(voc):
    data = read_annotations(voc, None, ReadOptions(masks=None, classes=("dog", "cat")))
    assert data.class_names == ["dog", "cat"]
    refused(voc, "cat", options=ReadOptions(masks=None, classes=("dog",)))


def test_voc_images_without_objects(voc):
    save(voc / "JPEGImages/b.jpg")
    write(voc / "Annotations/b.xml", xml())
    assert read(voc)["b.jpg"] == []


@pytest.mark.parametrize(
    "text",
    ["<annotation><object/></annotation>", "<annotation", "<html/>", xml(("cat", 1, "x", 2, 2))],
)
def test_mistakes_in_xml_files(voc, text):
    refused(voc, write(voc / "Annotations/b.xml", text))


def test_missing_images_of_voc(voc):
    write(voc / "Annotations/b.xml", xml(VOC_SQUARE, filename="b.jpg", size=None))
    refused(voc, voc / "JPEGImages/b.jpg")
    skip = ReadOptions(masks=None, skip_missing=True)
    assert list(read(voc, options=skip)) == ["a.jpg"]
    (voc / "JPEGImages/a.jpg").unlink()
    (voc / "JPEGImages").rmdir()
    refused(voc, "--images")


# --- labelme


def shape(label, points, kind="polygon", **entries):
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **entries}


def labelme(folder, *shapes, name="a", **entries):
    save(folder / f"{name}.jpg")
    size = {"imageWidth": SIZE[0], "imageHeight": SIZE[1]}
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg"}
    write(folder / f"{name}.json", json.dumps({**content, **size, "imageData": None, **entries}))
    return folder


def masks_of(folder):
    """Return the segmentations of the first image."""
    data = read_annotations(folder, None, ANY_MASKS)
    assert data.masks
    return [a["segmentation"] for a in data.annotations[1]]


def test_labelme_polygons_keep_their_points(tmp_path):
    half = [[10.5, 5.5], [30.25, 5.5], [30.25, 25.75]]
    labelme(tmp_path, shape("big cat", POINTS), shape("ant", half, flags={"occluded": True}))
    write(tmp_path / "._a.json", b"\0\5\x16\7")
    assert read(tmp_path) == {"a.jpg": [("big cat", SQUARE), ("ant", [10.5, 5.5, 19.75, 20.25])]}
    assert masks_of(tmp_path)[1] == [[10.5, 5.5, 30.25, 5.5, 30.25, 25.75]]
    assert read_class_names(tmp_path) == ["ant", "big cat"]  # sorted


def test_labelme_rectangles_are_boxes_unless_others_have_masks(tmp_path):
    rectangle = shape("cat", [[30, 25], [10, 5]], "rectangle")
    labelme(tmp_path, rectangle)
    assert read(tmp_path) == {"a.jpg": [("cat", SQUARE)]}
    assert not read_annotations(tmp_path, None, ANY_MASKS).masks
    labelme(tmp_path, shape("cat", POINTS), name="b")
    assert masks_of(tmp_path) == [[[10, 5, 30, 5, 30, 25, 10, 25]]]


def test_labelme_rectangles_are_masks_for_a_model_of_masks(tmp_path):
    labelme(tmp_path, shape("cat", [[30, 25], [10, 5]], "rectangle"))
    masks = ReadOptions(masks=True)
    data = read_annotations(tmp_path, None, masks, "val")
    assert data.annotations[1][0]["segmentation"] == [[10, 5, 30, 5, 30, 25, 10, 25]]
    refused(tmp_path, tmp_path, options=masks)  # as training data, they have no mask


def test_labels_of_labelme_that_are_no_classes(tmp_path):
    others = [shape(label, POINTS) for label in ("__ignore__", "_background_")]
    labelme(tmp_path, shape("cat", POINTS), *others)
    assert read(tmp_path) == {"a.jpg": [("cat", SQUARE)]}
    assert read_class_names(tmp_path) == ["cat"]
    assert read_annotations(tmp_path, None, ANY_MASKS).notes == {"no_class": 2}


def test_labelme_labels_that_differ_only_in_spaces_are_one_class(tmp_path):
    labelme(tmp_path, shape("1", POINTS), shape(" 1", POINTS), shape(2, POINTS))
    assert read_class_names(tmp_path) == ["1", "2"]
    assert read(tmp_path) == {"a.jpg": [("1", SQUARE), ("1", SQUARE), ("2", SQUARE)]}


def test_labelme_circles_are_polygons(tmp_path):
    labelme(tmp_path, shape("cat", [[20, 15], [30, 15]], "circle"))  # the radius is 10
    ((name, box),) = read(tmp_path)["a.jpg"]
    assert name == "cat" and box == pytest.approx(SQUARE, abs=1)
    ((points,),) = masks_of(tmp_path)
    distances = np.hypot(np.array(points[0::2]) - 20, np.array(points[1::2]) - 15)
    assert len(distances) >= 12 and np.allclose(distances, 10)


def test_labelme_masks(tmp_path):
    stored = io.BytesIO()
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(stored, "PNG")
    mask = base64.b64encode(stored.getvalue()).decode()
    labelme(tmp_path, shape("cat", [[10, 5], [29, 24]], "mask", mask=mask))
    assert read(tmp_path)["a.jpg"] == [("cat", SQUARE)]
    (rle,) = masks_of(tmp_path)
    expected = np.zeros((48, 64), np.uint8)
    expected[5:25, 10:30] = 1
    assert np.array_equal(pycocotools.mask.decode(rle), expected)


def test_labelme_groups_are_one_object(tmp_path):
    parts = [shape("cat", POINTS[:3], group_id=1), shape("cat", POINTS[1:], group_id=1)]
    others = [shape("dog", POINTS, group_id=1), shape("cat", POINTS), shape("cat", POINTS)]
    labelme(tmp_path, parts[0], *others, parts[1])
    names = [name for name, _ in read(tmp_path)["a.jpg"]]
    assert sorted(names) == ["cat", "cat", "cat", "dog"]
    assert sorted(map(len, masks_of(tmp_path))) == [1, 1, 1, 2]


def test_labelme_shapes_without_area_are_counted(tmp_path):
    lines = [shape("cat", [[1, 1], [9, 9]], kind) for kind in ("line", "linestrip", "polygon")]
    labelme(tmp_path, *lines, shape("cat", [[1, 1]], "point"), shape("cat", POINTS))
    assert read(tmp_path)["a.jpg"] == [("cat", SQUARE)]
    data = read_annotations(tmp_path, None, ANY_MASKS)
    assert data.notes.total() == 4 and "4" in data.summary()


def test_paths_and_sizes_of_labelme_images(tmp_path):
    folder = labelme(tmp_path / "json", shape("cat", POINTS), imagePath="..\\photos\\b.jpg")
    save(tmp_path / "photos/b.jpg")
    data = read_annotations(folder, None, ANY_MASKS)
    assert data.images[0]["file_name"] == "../photos/b.jpg"
    assert list(read(folder, tmp_path / "photos")) == ["b.jpg"]
    labelme(folder, shape("cat", POINTS), imagePath="gone.jpg", imageWidth=None, imageHeight=None)
    data = read_annotations(folder, None, ANY_MASKS)  # the image of the same stem, with its size
    image = data.images[0]
    assert (image["file_name"], image["width"], image["height"]) == ("a.jpg", *SIZE)


def test_mistakes_in_labelme_folders(tmp_path):
    labelme(tmp_path, shape("cat", POINTS))
    refused(tmp_path / "a.json", tmp_path, images=tmp_path)  # the folder, not one file
    for bad in (
        {},
        {"label": "cat", "shape_type": "polygon", "points": [[1, "x"], [2, 2], [3, 3]]},
    ):
        refused(labelme(tmp_path, bad, shape("cat", POINTS), name="b"), tmp_path / "b.json")
    write(tmp_path / "b.json", '{"images": []}')
    refused(tmp_path, tmp_path / "b.json")


# --- All formats


def test_a_coco_format_file_needs_no_folder_of_images_beside_it(drawn):
    data = read_annotations(drawn.json, None)
    assert data.images[0]["path"] == str(drawn.images / "1.png")
    assert not own_validation(drawn.json)
    assert read_class_names(drawn.json) == ["red", "blue"]


def test_folders_and_files_without_annotations(tmp_path):
    refused(tmp_path / "gone", tmp_path / "gone", "data.yaml")
    refused(tmp_path, tmp_path, "data.yaml")
    assert not own_validation(tmp_path / "gone")
    write(tmp_path / "labels/a.txt", "0 1 1 1 1")
    refused(tmp_path, tmp_path, "needs a data.yaml")
    write(tmp_path / "instances_val.json", '{"images": []}')
    refused(write(tmp_path / "a.csv", ""), "a.csv")


def test_without_the_library_the_message_has_the_command(yolo, voc, monkeypatch):
    for name in list(sys.modules):
        if name.partition(".")[0] in ("supervision", "defusedxml"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "supervision", None)
    for path in (yolo, voc):
        refused(path, "pip install 'e3va[formats]'")
