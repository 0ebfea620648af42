"""What YOLO folders, Pascal VOC, labelme and COCO-format files have in common."""

import sys

from e3va.data.coco import ReadOptions
from e3va.data.formats import own_validation, read_annotations, read_class_names, scored_split

from .format_files import (
    ANY_MASKS,
    POINTS,
    SQUARE,
    VOC_SQUARE,
    labelme,
    read,
    refused,
    shape,
    write,
    xml,
)


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
