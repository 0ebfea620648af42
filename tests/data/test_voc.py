"""Pascal VOC: odd files as people have them, with boxes by hand."""

import pytest

from e3va.data.coco import ReadOptions
from e3va.data.formats import own_validation, read_annotations, read_class_names
from e3va.data.voc import CLASSES

from .format_files import ANY_MASKS, SIZE, SQUARE, VOC_SQUARE, read, refused, save, write, xml


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
