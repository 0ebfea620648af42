"""Annotation files: mistakes are one clear line; unusable annotations are dropped and counted."""

import json
import math

import pytest

from e3va import UserError
from e3va.data.coco import ReadOptions, category_names, load_json, read_coco


def read(drawn, **settings):
    drawn.json.write_text(json.dumps(drawn.data))
    return read_coco(drawn.json, drawn.images, ReadOptions(**settings))


def refused(drawn, **settings) -> str:
    with pytest.raises(UserError) as caught:
        read(drawn, **settings)
    line = str(caught.value)
    assert "\n" not in line and str(drawn.json) in line
    return line


def test_a_good_file_is_read_whole(drawn):
    data = read(drawn, training=True)
    assert data.class_names == ["red", "blue"]  # by id
    assert data.class_index == {3: 0, 7: 1}  # ids need not be contiguous
    assert sum(map(len, data.annotations.values())) == 12 and not data.notes
    assert data.images[0]["path"] == str(drawn.images / "1.png")
    assert data.summary() == f"{drawn.json}: 6 images, 12 objects, 2 classes (red, blue)"
    assert category_names(load_json(drawn.json), drawn.json) == ["red", "blue"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{ nothing", "is not JSON"),
        ("[1, 2]", "holds a list: expected COCO format"),
        ("{}", "has no 'categories'"),
        ('{"categories": {}}', "has a malformed 'categories'"),
        ('{"categories": []}', "'categories' is empty"),
        ('{"categories": [{"id": "x", "name": "y"}]}', "needs an integer 'id' and a 'name'"),
        ('{"categories": [{"id": 1, "name": "y"}]}', "has no 'images'"),
        ('{"categories": [{"id": 1, "name": "y"}], "images": []}', "'images' is empty"),
    ],
)
def test_files_that_are_not_coco(drawn, text, message):
    drawn.json.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_coco(drawn.json, drawn.images)
    assert str(drawn.json) in str(caught.value)


def test_binary_and_missing_files(drawn, tmp_path):
    drawn.json.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not JSON"):
        read_coco(drawn.json, drawn.images)
    with pytest.raises(UserError, match="no annotation file .*gone.json"):
        load_json(tmp_path / "gone.json")


def test_categories_and_images_must_be_unique(drawn):
    drawn.data["categories"].append({"id": 3, "name": "green"})
    assert "category id 3 is both 'red' and 'green'" in refused(drawn)
    drawn.data["categories"].pop()
    drawn.data["images"].append({**drawn.data["images"][0], "file_name": "2.png"})
    assert "image id 1 appears twice" in refused(drawn)


def test_missing_images_and_incomplete_records(drawn):
    drawn.data["images"][1]["file_name"] = "gone.png"
    line = refused(drawn)
    assert "1 of 6 images" in line and str(drawn.images / "gone.png") in line
    del drawn.data["images"][2]["height"]
    assert "image '3.png' has no 'height' of type int" in refused(drawn)


@pytest.mark.parametrize("box", [None, [1, 2, 3], "1234", [1, 2, 3, "x"], [1, 2, 3, True]])
def test_malformed_boxes(drawn, box):
    drawn.data["annotations"][0]["bbox"] = box
    assert "annotation 1 of 1.png: the bbox is" in refused(drawn)


@pytest.mark.parametrize(
    "box",
    [
        [200, 5, 10, 10],
        [-30, 5, 30, 10],
        [5, 200, 10, 10],
        [5, 5, 0, 10],
        [5, 5, 10, -3],
        [math.nan, 5, 5, 5],
        [5, 5, math.inf, 5],
    ],
)
def test_boxes_without_area_inside_the_image_are_dropped(drawn, box):
    drawn.data["annotations"][0]["bbox"] = box
    data = read(drawn, training=True)
    assert data.notes == {"no_area": 1}
    assert [a["id"] for a in data.annotations[1]] == [2]
    assert data.summary().endswith("; left out: boxes with no area inside the image (1)")


def test_boxes_that_reach_beyond_the_image_are_kept(drawn):
    drawn.data["annotations"][0]["bbox"] = [-10, -10, 30, 30]
    assert len(read(drawn).annotations[1]) == 2


def test_polygons_of_two_points_are_dropped(drawn):
    first, second = drawn.data["annotations"][:2]
    whole = list(second["segmentation"][0])
    first["segmentation"] = [[1, 2, 3, 4]]
    second["segmentation"] += [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    data = read(drawn)
    assert data.notes == {"polygons": 1, "polygon_left_out": 1}
    assert data.annotations[1][0]["segmentation"] == [whole]


def test_masks_are_required_only_where_they_are_learned(drawn):
    del drawn.data["annotations"][4]["segmentation"]
    data = read(drawn)
    assert data.notes == {"no_mask": 1} and [a["id"] for a in data.annotations[3]] == [6]
    boxes = read(drawn, masks=False)
    assert len(boxes.annotations[3]) == 2 and not boxes.notes and not boxes.masks
    assert not any("segmentation" in a for own in boxes.annotations.values() for a in own)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("abc", "a str, expected polygons or RLE"),
        ({"size": [80, 96]}, r"a dict with the keys \['size'\]"),
        ({"size": [96, 80], "counts": [7680]}, r"the RLE has the size \[96, 80\].*\[80, 96\]"),
    ],
)
def test_masks_that_cannot_be_read_are_refused(drawn, segmentation, message):
    drawn.data["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(UserError, match=f"annotation 1 of 1.png: .*{message}"):
        read(drawn)


@pytest.mark.parametrize("key", ["image_id", "category_id", "id"])
def test_ids_may_be_anything_that_json_holds(drawn, key):
    drawn.data["annotations"][0][key] = [3]
    if key == "category_id":
        assert "the category_id is [3]" in refused(drawn)
    else:
        assert read(drawn).notes.keys() == {
            "unknown_image" if key == "image_id" else "annotation_twice"
        }


def test_unknown_categories_and_unlisted_images(drawn):
    drawn.data["annotations"][3]["image_id"] = 77
    assert read(drawn).notes == {"unknown_image": 1}
    drawn.data["annotations"][2]["category_id"] = 5
    line = refused(drawn)
    assert "annotation 3 of 2.png: the category_id is 5" in line and "[3, 7]" in line


def test_training_needs_something_to_train_on(drawn):
    drawn.data["annotations"] = drawn.data["annotations"][:2]
    assert len(read(drawn, training=True).images) == 1
    assert len(read(drawn).images) == 6  # in evaluation, empty images count
    for annotation in drawn.data["annotations"]:
        annotation["iscrowd"] = 1
    assert "has no usable annotation to train on" in refused(drawn, training=True)
    drawn.data["annotations"] = []
    assert "has no usable annotation to train on" in refused(drawn, training=True)


def test_missing_fields_are_filled_in(drawn):
    for annotation in drawn.data["annotations"]:
        for key in ("iscrowd", "area", "id"):
            del annotation[key]
    annotations = [a for group in read(drawn).annotations.values() for a in group]
    assert sorted(a["id"] for a in annotations) == list(range(1, 13))
    assert {a["iscrowd"] for a in annotations} == {0}
    assert {a["area"] for a in annotations} == {28 * 40}


def test_written_file_is_read_by_pycocotools(drawn, tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    drawn.data["annotations"][0]["bbox"] = [500, 500, 2, 2]
    drawn.data["annotations"][1]["id"] = drawn.data["annotations"][2]["id"]  # not unique
    read(drawn).write(tmp_path / "clean.json")
    loaded = coco.COCO(str(tmp_path / "clean.json"))
    assert len(loaded.getImgIds()) == 6 and len(loaded.getAnnIds()) == 11
    assert "path" not in loaded.loadImgs(1)[0]
