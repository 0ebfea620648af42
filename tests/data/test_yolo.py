"""YOLO folders: odd files as people have them, with boxes by hand."""

import pytest
from PIL import Image

from e3va.data.coco import ReadOptions
from e3va.data.formats import own_validation, read_annotations, read_class_names

from .format_files import ANY_MASKS, SIZE, SQUARE, YOLO_SQUARE, read, refused, save, write


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
    assert data.notes == {"unread": 2}
    assert "annotation files without an image or in a subfolder (2)" in data.summary()
    assert not read_annotations(yolo, None, ANY_MASKS, "val").notes


def test_names_of_yolo_classes_stay_as_they_are_written(yolo):
    for names in ("[yes, no]", "{0: yes, 1: no}"):
        write(yolo / "data.yaml", f"names: {names}\ntrain: images/train\n")
        assert read_class_names(yolo) == ["yes", "no"]


@pytest.mark.parametrize("line", ["0 0.5 0.5 0.2 0.2 0.9 17", "0 32 24 10 10"])
def test_lines_with_coordinates_far_beyond_the_image_are_refused(yolo, line):
    write(yolo / "labels/train/a.txt", line)
    refused(yolo, yolo / "labels/train/a.txt", line, {"7": 17, "0": 32}[line[-1]])


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
