"""Annotation files as tools write them: each form is read as it was meant, and counted."""

import json
import math

import pytest

from e3va import UserError
from e3va.data.check_instances import check_instances
from e3va.data.coco import ReadOptions, category_names, load_json, read_coco
from e3va.data.problems import CONVERTED, KINDS, SKIPPED


def read(drawn, **settings):
    drawn.save()
    return read_coco(drawn.json, drawn.images, ReadOptions(**settings))


def refused(drawn, **settings) -> str:
    with pytest.raises(UserError) as caught:
        read(drawn, **settings)
    assert str(drawn.json) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def flat(data) -> list[dict]:
    return [a for image in data.images for a in data.annotations[image["id"]]]


def checked(drawn) -> dict[str, int]:
    return check_instances(drawn.data, drawn.json, drawn.images).problems.counts()


@pytest.fixture
def expected(drawn):
    """Return what the unchanged file holds."""
    return read(drawn)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_with_a_byte_order_mark(drawn, expected, encoding):
    drawn.json.write_bytes(json.dumps(drawn.data).encode(encoding))
    assert read_coco(drawn.json, drawn.images) == expected


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", ""])
def test_json_that_python_cannot_read_is_one_line(drawn, text):
    drawn.json.write_text(text)
    with pytest.raises(UserError, match=str(drawn.json)) as caught:
        load_json(drawn.json)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("first", [0, 1, 500])
def test_annotations_are_numbered_from_1_in_their_order(drawn, expected, first):
    for number, annotation in enumerate(drawn.data["annotations"]):
        annotation["id"] = first + number
    assert read(drawn) == expected and [a["id"] for a in flat(expected)] == list(range(1, 13))
    assert checked(drawn) == {}
    for number, annotation in enumerate(drawn.data["annotations"]):
        annotation["id"] = f"a{number}"
    assert read(drawn) == expected


@pytest.mark.parametrize("as_id", [str, float, "{:06d}".format])
def test_image_ids_as_text_or_floats(drawn, expected, as_id):
    for image in drawn.data["images"]:
        image["id"] = as_id(image["id"])
    data = read(drawn)
    assert data.images == expected.images and flat(data) == flat(expected)
    assert data.notes == {"number": 6} and checked(drawn) == {"number": 6}
    for annotation in drawn.data["annotations"]:
        annotation["image_id"] = as_id(annotation["image_id"])
    assert flat(read(drawn)) == flat(expected) and read(drawn).notes == {"number": 18}


def test_image_ids_that_are_other_texts(drawn, expected):
    # In the file's order, the first image has the greatest text.
    for record in (*drawn.data["images"], *drawn.data["annotations"]):
        key = "image_id" if "image_id" in record else "id"
        record[key] = f"{9 - record[key]}e4-uuid"
    data = read(drawn, training=True)
    assert data.images == expected.images and data.annotations == expected.annotations
    assert data.notes == {"image_numbered": 1} and checked(drawn) == {"image_numbered": 1}


@pytest.mark.parametrize("identity", [None, True, {}, [1], 12.5, math.nan])
def test_image_ids_of_other_types_are_refused(drawn, identity):
    drawn.data["images"][0]["id"] = identity
    assert "1.png" in refused(drawn)


def test_repeated_image_records_count_once(drawn, expected):
    drawn.data["images"].append({**drawn.data["images"][1], "width": "80"})
    data = read(drawn, training=True)
    assert data.images == expected.images and data.notes == {"image_again": 1}
    assert "; left out: repeated image records (1)" in data.summary()
    drawn.data["images"][-1]["width"] = 81
    assert "'2.png'" in refused(drawn)


def test_one_file_under_two_ids_is_in_the_summary(drawn):
    drawn.data["images"].append({**drawn.data["images"][1], "id": 50, "file_name": "./2.png"})
    assert "; warnings: files that are listed as several images (1)" in read(drawn).summary()
    assert checked(drawn) == {"file_twice": 1, "empty": 1}


def test_category_ids_and_names_of_other_types(drawn, expected):
    drawn.data["categories"] = [{"id": "7", "name": 0}, {"id": 3.0, "name": 2.5}]
    data = read(drawn)
    assert data.class_names == ["2.5", "0"] and data.class_index == {3: 0, 7: 1}
    assert flat(data) == flat(expected) and data.notes == {"number": 2, "category_name": 2}
    for annotation in drawn.data["annotations"]:
        annotation["category_id"] = str(annotation["category_id"])
    assert flat(read(drawn)) == flat(expected) and checked(drawn)["number"] == 14
    drawn.data["categories"][0]["name"] = True
    assert "True" in refused(drawn)


def test_equal_names_become_different(drawn):
    drawn.data["categories"] = [
        {"id": 7, "name": "cat"},
        {"id": 3, "name": "cat"},
        {"id": 9, "name": "cat (7)"},
    ]
    data = read(drawn)
    assert data.class_names == ["cat", "cat (7) (7)", "cat (7)"]
    assert data.notes == {"name_twice": 2}
    assert "warnings: classes with the same name (2)" in data.summary()
    assert category_names(drawn.data, drawn.json) == data.class_names
    assert category_names(drawn.data, drawn.json) == data.class_names


@pytest.mark.parametrize("none", ["none", None, 5, [1], {"a": 1}, math.nan])
def test_unused_parents_are_no_classes(drawn, expected, none):
    for category in drawn.data["categories"]:
        category["supercategory"] = "colors"
    drawn.data["categories"].insert(0, {"id": 0, "name": "colors", "supercategory": none})
    data = read(drawn)
    assert data.class_names == ["red", "blue"] and data.annotations == expected.annotations
    assert data.notes == {"parent": 1} and checked(drawn) == {"parent": 1}
    assert "left out: unused parent categories (1)" in data.summary()
    assert category_names(drawn.data, drawn.json) == ["red", "blue"]
    names = ["colors", "red", "blue"]
    model = read(drawn, classes=tuple(names))
    assert model.class_names == category_names(drawn.data, drawn.json, names) == names
    drawn.data["annotations"][0]["category_id"] = "0"
    assert read(drawn).class_names == names


def test_a_parent_may_have_the_name_of_its_only_class(drawn):
    drawn.data["categories"] = [
        {"id": 0, "name": "red", "supercategory": "none"},
        {"id": 3, "name": "red", "supercategory": "red"},
        {"id": 7, "name": "blue", "supercategory": "red"},
    ]
    for classes in ((), ("red", "blue")):
        data = read(drawn, classes=classes)
        assert data.class_index == {3: 0, 7: 1} and data.notes == {"parent": 1}


@pytest.mark.parametrize("form", [str, float, "{}.0".format])
def test_sizes_as_text_or_floats(drawn, expected, form):
    for image in drawn.data["images"]:
        image["width"], image["height"] = form(image["width"]), form(image["height"])
    data = read(drawn)
    assert data.images == expected.images and data.notes == {"number": 6}
    assert {type(i[side]) for i in data.images for side in ("width", "height")} == {int}


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize("value", [0, -64, 64.5, "x", None, True, [64], 10**9, math.inf, math.nan])
def test_other_sizes_are_refused(drawn, side, value):
    drawn.data["images"][2][side] = value
    line = refused(drawn)
    assert "'3.png'" in line and side in line and (value is None or repr(value) in line)


def test_backslashes_in_file_names(drawn, expected):
    folder = drawn.images / "set"
    folder.mkdir()
    for image in drawn.data["images"][:2]:
        (drawn.images / image["file_name"]).rename(folder / image["file_name"])
        image["file_name"] = f"set\\{image['file_name']}"
    (drawn.images / "3.png").rename(drawn.images / "a\\3.png")
    drawn.data["images"][2]["file_name"] = "a\\3.png"  # such a file exists, so it is meant
    data = read(drawn)
    names = [image["file_name"] for image in data.images[:3]]
    assert names == ["set/1.png", "set/2.png", "a\\3.png"]
    assert data.images[0]["path"] == str(folder / "1.png") and data.notes == {"backslash": 2}
    drawn.data["images"][0]["file_name"] = "set\\gone.png"
    assert str(folder / "gone.png") in refused(drawn)


def test_missing_images_can_be_skipped(drawn):
    (drawn.images / "1.png").unlink()
    drawn.data["annotations"][0]["bbox"] = "x"  # of a missing image, so that nobody needs it
    line = refused(drawn)
    assert "annotation 1 of 1.png" in line
    drawn.data["annotations"][0]["bbox"] = [8, 8, 9, 9]
    line = refused(drawn)
    assert "1 of 6" in line and "--skip-missing" in line and "data.skip_missing=true" in line
    drawn.data["annotations"][0]["bbox"] = "x"
    data = read(drawn, skip_missing=True, training=True)
    assert [i["id"] for i in data.images] == [2, 3, 4, 5, 6] and len(flat(data)) == 10
    assert data.notes == {"absent": 1}
    assert "left out: images that do not exist (1)" in data.summary()
    for path in drawn.images.iterdir():
        path.unlink()
    line = refused(drawn, skip_missing=True)
    assert "6 of 6" in line and str(drawn.images) in line and "--skip-missing" not in line


@pytest.mark.parametrize(
    ("given", "value", "counted"),
    [
        (None, 0, 0), (0, 0, 0), (1, 1, 0), ("0", 0, 1), ("1", 1, 1),
        (True, 1, 1), (False, 0, 1), (1.0, 1, 1), (0.0, 0, 1),
    ],
)  # fmt: skip
def test_iscrowd_in_every_form(drawn, given, value, counted):
    drawn.data["annotations"][2]["iscrowd"] = given
    data = read(drawn)
    assert flat(data)[2]["iscrowd"] == value and type(flat(data)[2]["iscrowd"]) is int
    assert data.notes.total() == data.notes["number"] == counted


@pytest.mark.parametrize("given", [2, -1, 0.5, "yes", [], {}, math.nan])
def test_other_values_of_iscrowd_are_refused(drawn, given):
    drawn.data["annotations"][2]["iscrowd"] = given
    line = refused(drawn)
    assert "annotation 3 of 2.png" in line and repr(given) in line and "iscrowd" in line
    assert checked(drawn)["crowd"] == 1


@pytest.mark.parametrize(
    ("given", "area", "kind"),
    [
        (7.5, 7.5, None), ("7.5", 7.5, "number"), (None, 200, None), (-4, 200, "area"),
        (math.nan, 200, "area"), (math.inf, 200, "area"), ("big", 200, "area"), (0, 200, "area"),
        ([1], 200, "area"), (1e20, 200, "area"),
    ],
)  # fmt: skip
def test_areas_in_every_form(drawn, given, area, kind):
    # Half of the box is in the mask.
    record = {"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 20, 10, 20, 30, 10, 30]]}
    drawn.data["annotations"][0] |= {**record, "area": given}
    data = read(drawn)
    assert flat(data)[0]["area"] == area and data.notes == ({kind: 1} if kind else {})
    boxes = flat(read(drawn, masks=False))
    assert boxes[0]["area"] == (400 if area == 200 else area)


def test_crowds_can_be_objects(drawn):
    for annotation in drawn.data["annotations"]:
        annotation["iscrowd"] = 1
    line = refused(drawn, training=True)
    assert "iscrowd" in line and "12" in line
    assert "--use-crowds" in line and "data.use_crowds=true" in line
    assert "iscrowd" in check_instances(drawn.data, drawn.json, drawn.images).problems[0].text
    data = read(drawn, training=True, use_crowds=True)
    assert {a["iscrowd"] for a in flat(data)} == {0} and data.notes == {"crowd_used": 12}


def test_boxes_as_text(drawn, expected):
    for annotation in drawn.data["annotations"]:
        annotation["bbox"] = [f" {value}.0" for value in annotation["bbox"]]
    data = read(drawn)
    assert flat(data) == flat(expected) and data.notes == {"number": 12}
    assert {type(value) for a in flat(data) for value in a["bbox"]} == {float}


@pytest.mark.parametrize("box", [None, "1234", [1, 2, 3], [1, 2, 3, None], [1, 2, 3, "1_0"], {}])
def test_malformed_boxes_name_the_image(drawn, box):
    drawn.data["annotations"][2]["bbox"] = box
    assert "annotation 3 of 2.png" in refused(drawn)


@pytest.mark.parametrize("box", [[5, 5, 1e-7, 9], [5, 5, 9, 0.009], [-9, 5, 9.005, 9]])
def test_sides_that_vanish_in_float32_are_dropped(drawn, box):
    drawn.data["annotations"][0]["bbox"] = box
    assert read(drawn, training=True).notes == {"no_area": 1}
    assert checked(drawn) == {"no_area": 1}


def test_boxes_that_reach_far_keep_their_part_inside_in_float32(drawn):
    drawn.data["annotations"][0]["bbox"] = [-1e8, 5, 1e8 + 20, 9]
    assert flat(read(drawn))[0]["bbox"] == [0, 5, 20, 9]
    for far in (1e9, 1e200, 10**200):
        drawn.data["annotations"][0] |= {"bbox": [-far, 5, 2 * far, 9], "area": None}
        box = flat(read(drawn, masks=False))[0]
        assert box["bbox"] == [0, 5, 96, 9] and box["area"] == 96 * 9


@pytest.mark.parametrize(
    ("box", "inside", "counted"),
    [
        ([-30, 8, 55, 20], [0, 8, 25, 20], True),
        ([70, 60.5, 26, 30], [70, 60.5, 26, 19.5], True),
        ([-1, -1, 8, 82], [0, 0, 7, 80], False),  # as in files that count pixels from 1
        ([0.1, 0.2, 0.7, 0.3], [0.1, 0.2, 0.7, 0.3], False),
    ],
)
def test_boxes_beyond_their_image_are_clipped_and_counted(drawn, box, inside, counted):
    drawn.data["annotations"][0] |= {"bbox": box, "area": 77}
    data = read(drawn, masks=False)
    assert flat(data)[0]["bbox"] == inside and flat(data)[0]["area"] == 77
    assert (
        data.notes == ({"outside": 1} if counted else {}) and KINDS["outside"].severity == CONVERTED
    )
    assert (
        "converted: boxes that reach beyond their image, clipped to it (1)" in data.summary()
    ) == counted
    assert checked(drawn).get("outside", 0) == counted


def test_names_that_differ_only_in_spaces_are_equal(drawn):
    drawn.data["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": " cat "}]
    data = read(drawn)
    assert data.class_names == ["cat", "cat (7)"]
    assert data.notes == {"name_twice": 2, "category_name": 1}


def test_images_without_objects_are_counted_or_kept(drawn):
    for annotation in drawn.data["annotations"][:2]:
        annotation["iscrowd"] = 1
    del drawn.data["annotations"][2:6]
    left = read(drawn, training=True)
    assert [i["id"] for i in left.images] == [4, 5, 6] and left.notes == {"empty": 3}
    assert "left out: images without objects (3)" in left.summary()
    assert "--keep-empty" in KINDS["empty"].advice
    assert checked(drawn) == {"empty": 3} and KINDS["empty"].severity == SKIPPED
    kept = read(drawn, training=True, keep_empty=True)
    assert len(kept.images) == 6 and not kept.notes and kept.annotations[2] == []
    drawn.data["annotations"] = []
    refused(drawn, training=True, keep_empty=True)
    assert len(read(drawn).images) == 6


def test_the_summary_is_one_line_with_all_counts(drawn):
    drawn.data["annotations"][0]["segmentation"] = drawn.data["annotations"][0]["segmentation"][0]
    drawn.data["annotations"][1]["bbox"] = [5, 5, 0, 0]
    drawn.data["annotations"][2]["iscrowd"] = "0"
    del drawn.data["annotations"][4:6]
    drawn.data["categories"][0]["name"] = "dark\nblue"
    line = read(drawn, training=True).summary()
    assert "\n" not in line and line.startswith(f"{drawn.json}: 5 images, 9 objects, 2 classes")
    left, converted = line.split("; ")[1:]
    assert left.startswith("left out: boxes with no area inside the image (1), ")
    assert "images without objects (1)" in left
    assert converted.startswith('converted: numbers written as "64", 64.0 or true (1), ')
    assert "masks with flat or deeply nested polygons or numbers as text (1)" in converted
