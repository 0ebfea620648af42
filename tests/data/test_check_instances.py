"""COCO-format files: the check finds every kind of problem, and agrees with training."""

import copy
import math
from collections import Counter

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from e3va import UserError
from e3va.data.check_instances import check_instances
from e3va.data.coco import ReadOptions, read_coco
from e3va.data.contact_sheet import write_sheet
from e3va.data.masks import to_rle
from e3va.data.problems import CONVERTED, DROPPED, KINDS, REFUSED, SKIPPED, WARNING
from e3va.data.report import report_numbers, report_text


def check(drawn):
    return check_instances(drawn.data, drawn.json, drawn.images)


def found_in(drawn) -> list[tuple]:
    return sorted((p.kind, p.file, p.id) for p in check(drawn).problems)


def test_a_good_file_has_no_problem_and_is_counted(drawn):
    found = check(drawn)
    assert found.problems == [] and found.problems.text() == "Problems: none"
    numbers = report_numbers(found)
    assert numbers["images"] == numbers["annotated"] == 6 and numbers["objects"] == 12
    assert [(c["id"], c["name"], c["objects"], c["medium"]) for c in numbers["classes"]] == [
        (3, "red", 6, 6),
        (7, "blue", 6, 6),
    ]
    text = report_text(found)
    assert "min 80×96, median 96×80, max 96×80; 3 landscape, 3 portrait, 0 square" in text
    row = next(line for line in text.splitlines() if " red " in line)
    # id, name, objects, share, images, crowds, √(28 · 40) three times, small, medium, large
    assert row.split() == ["3", "red", "6", "50.0%", "6", "0", "33", "33", "33", "0", "6", "0"]


def annotation(drawn, number=0, **values):
    drawn.data["annotations"][number].update(values)


def polygon(*points):
    return {"segmentation": [list(points)]}


def rle(height, width, counts):
    return {"segmentation": {"size": [height, width], "counts": counts}}


# Changes of the drawn data, and the problems that the check must then find: (kind, file, id).
# The first annotation belongs to 1.png (96×80) and has the box [8, y, 28, 40].
CASES = {
    "no area": (lambda d: annotation(d, bbox=[200, 5, 9, 9]), [("no_area", "1.png", 1)]),
    "zero width": (lambda d: annotation(d, bbox=[20, 5, 0, 9]), [("no_area", "1.png", 1)]),
    "negative": (lambda d: annotation(d, bbox=[20, 5, 9, -9]), [("no_area", "1.png", 1)]),
    "nan": (lambda d: annotation(d, bbox=[20, math.nan, 9, 9]), [("no_area", "1.png", 1)]),
    "box of three": (lambda d: annotation(d, bbox=[1, 2, 3]), [("box", "1.png", 1)]),
    "box of text": (lambda d: annotation(d, bbox=[1, 2, 3, "x"]), [("box", "1.png", 1)]),
    "unknown class": (lambda d: annotation(d, category_id=9), [("unknown_category", "1.png", 1)]),
    "class is a list": (
        lambda d: annotation(d, category_id=[3]),
        [("unknown_category", "1.png", 1)],
    ),
    "unknown image": (lambda d: annotation(d, image_id=99), [("unknown_image", "", 1)]),
    "image is a list": (lambda d: annotation(d, image_id=[1]), [("unknown_image", "", 1)]),
    "two points": (lambda d: annotation(d, **polygon(1, 2, 3, 4)), [("polygons", "1.png", 1)]),
    "nan points": (
        lambda d: annotation(d, **polygon(1, 2, 3, 4, 5, math.nan)),
        [("polygons", "1.png", 1)],
    ),
    "no mask": (lambda d: annotation(d, segmentation=[]), [("no_mask", "1.png", 1)]),
    "mask is a number": (lambda d: annotation(d, segmentation=7), [("mask", "1.png", 1)]),
    "rle without counts": (
        lambda d: annotation(d, segmentation={"size": [80, 96]}),
        [("mask", "1.png", 1)],
    ),
    "rle of another size": (lambda d: annotation(d, **rle(8, 8, [64])), [("mask", "1.png", 1)]),
    "rle of too few": (lambda d: annotation(d, **rle(80, 96, [64])), [("mask", "1.png", 1)]),
    "rle of nonsense": (lambda d: annotation(d, **rle(80, 96, "é!")), [("mask", "1.png", 1)]),
    "empty rle": (lambda d: annotation(d, **rle(80, 96, [80 * 96])), [("empty_mask", "1.png", 1)]),
    "line": (
        lambda d: annotation(d, **polygon(9, 9, 30, 9, 9, 9)),
        [("empty_mask", "1.png", 1)],
    ),
    "one polygon of two": (
        lambda d: d.data["annotations"][0]["segmentation"].append([1, 2, 3, 4]),
        [("polygon_left_out", "1.png", 1)],
    ),
    "box beside mask": (
        lambda d: annotation(d, bbox=[50, 40, 28, 30]),
        [("disagree", "1.png", 1)],
    ),
    "area": (lambda d: annotation(d, area=-4), [("area", "1.png", 1)]),
    "same id": (lambda d: annotation(d, 1, id=1), [("annotation_twice", "1.png", 1)]),
    "no id": (
        lambda d: d.data["annotations"][0].pop("id"),
        [("annotation_twice", "1.png", None)],
    ),
    "no height": (
        lambda d: d.data["images"][0].pop("height"),
        [("image_record", "", 1), ("unknown_image", "", 1), ("unknown_image", "", 2)],
    ),
    "image twice": (
        lambda d: d.data["images"].append({**d.data["images"][1], "file_name": "1.png"}),
        [("image_twice", "1.png", 2)],
    ),
    "record twice": (
        lambda d: d.data["images"].append({**d.data["images"][1]}),
        [("image_again", "2.png", 2)],
    ),
    "file twice": (
        lambda d: d.data["images"].append({**d.data["images"][1], "id": 50}),
        [("file_twice", "2.png", 50), ("empty", "2.png", 50)],
    ),
    "other size": (
        lambda d: d.data["images"][0].update(width=200),
        [("image_size", "1.png", 1)],
    ),
    "gone": (
        lambda d: (d.images / "1.png").unlink(),
        [("missing", "1.png", 1)],
    ),
    "truncated": (
        lambda d: (d.images / "1.png").write_bytes((d.images / "1.png").read_bytes()[:3000]),
        [("undecodable", "1.png", 1)],
    ),
    "category twice": (
        lambda d: d.data["categories"].append({"id": 3, "name": "green"}),
        [("category_twice", "", 3)],
    ),
    "category without name": (
        lambda d: d.data["categories"].append({"id": 4}),
        [("category", "", 4)],
    ),
    "unused": (
        lambda d: d.data["categories"].append({"id": 4, "name": "green"}),
        [("unused", "", 4)],
    ),
    "same name": (
        lambda d: d.data["categories"][0].update(name="red"),
        [("name_twice", "", 3), ("name_twice", "", 7)],
    ),
    "no annotations": (
        lambda d: d.data["annotations"].clear(),
        [("nothing", "", None), ("unused", "", 3), ("unused", "", 7)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_problem_is_found_where_it_is(drawn, name):
    change, expected = CASES[name]
    change(drawn)
    drawn.save()
    named = [(k, str(drawn.images / f if f else drawn.json), i) for k, f, i in expected]
    assert sorted(found_in(drawn), key=str) == sorted(named, key=str)
    problems = check(drawn).problems
    assert all(p.text and "\n" not in p.text for p in problems)
    assert problems.counts() == Counter(kind for kind, _, _ in expected)


def test_masks_that_cannot_be_read_are_neither_counted_nor_drawn(drawn, tmp_path):
    annotation(drawn, **rle(80, 96, [64]))
    found = check(drawn)
    assert report_numbers(found)["objects"] == 11 and len(found.annotations[1]) == 1
    assert write_sheet(found, 6, tmp_path / "sheet.png") == 6


def test_sizes_begin_as_cocos(drawn):
    for number, area in enumerate((32**2 - 1, 32**2, 96**2 - 1, 96**2)):
        annotation(drawn, number, area=area, category_id=3)
    drawn.data["annotations"] = drawn.data["annotations"][:4]
    row = report_numbers(check(drawn))["classes"][0]
    assert (row["small"], row["medium"], row["large"]) == (1, 2, 1)


def test_edges_that_reach_out_differ_from_rounding(drawn):
    first = drawn.data["annotations"][0]
    first["bbox"], first["segmentation"] = [-0.5, 5, 40, 30], [[-0.5, 5, 39.5, 5, 39.5, 35, 0, 35]]
    assert found_in(drawn) == []
    first["bbox"], first["segmentation"] = [-6, 5, 40, 30], [[-6, 5, 34, 5, 34, 35, -6, 35]]
    path = str(drawn.images / "1.png")
    assert found_in(drawn) == [("outside", path, 1), ("polygon_outside", path, 1)]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_that_exif_turns(drawn, orientation):
    path = drawn.images / "1.jpg"
    image = Image.open(drawn.images / "1.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    drawn.data["images"][0]["file_name"] = "1.jpg"
    lies = orientation >= 5
    assert found_in(drawn) == [("unturned" if lies else "turned", str(path), 1)]
    if lies:
        problem = check(drawn).problems[0]
        assert "80×96" in problem.text and "96×80" in problem.text and "EXIF" in problem.text
        drawn.data["images"][0].update(width=80, height=96)
        assert ("turned", str(path), 1) in found_in(drawn)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_every_truncated_image_is_found(drawn, suffix):
    path = drawn.images / f"noise{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    drawn.data["images"][0]["file_name"] = path.name
    assert found_in(drawn) == []
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])
    assert found_in(drawn) == [("undecodable", str(path), 1)]


def test_boxes_without_masks_are_no_mistake(drawn):
    for one in drawn.data["annotations"]:
        del one["segmentation"]
    found = check(drawn)
    assert found.problems == [] and not found.masks and "boxes only" in report_text(found)


def test_keypoints_are_accepted_and_panoptic_files_refused(drawn):
    drawn.data["categories"][0]["keypoints"] = ["nose"]
    assert check(drawn).problems == []
    drawn.data["annotations"] = [{"image_id": 1, "segments_info": [{}, {}], "file_name": "1.png"}]
    with pytest.raises(UserError, match=r"panoptic file \(1 images, 2 segments\).*instances_"):
        check(drawn)


READER = {"category", "category_twice", "image_record", "image_twice", "no_images", "missing"}
READER |= {"unknown_category", "box", "crowd", "mask", "nothing"}
DROPS = {"unknown_image", "no_area", "no_mask", "polygons", "empty_mask"}
# Warnings that only the check gives.
ONLY_CHECKED = {"unused", "polygon_outside", "disagree"}


def test_severities_cover_the_readers():
    severities = {kind: about.severity for kind, about in KINDS.items()}
    assert {severities[kind] for kind in READER} == {REFUSED}
    assert {kind for kind, severity in severities.items() if severity == DROPPED} == DROPS
    assert severities["turned"] == severities["disagree"] == WARNING
    assert severities["empty"] == severities["parent"] == severities["hidden"] == SKIPPED
    assert severities["number"] == severities["unturned"] == severities["area"] == CONVERTED


BOXES = st.lists(
    st.one_of(st.floats(-150, 150), st.sampled_from([0, 8, 28, math.nan, math.inf])),
    min_size=4,
    max_size=4,
)
POLYGON = st.lists(st.floats(-20, 120), min_size=2, max_size=9)
CHANGES = st.one_of(
    st.fixed_dictionaries({"bbox": st.one_of(BOXES, BOXES, BOXES, st.none())}),
    st.fixed_dictionaries({"segmentation": st.one_of(st.lists(POLYGON, max_size=2), POLYGON)}),
    st.fixed_dictionaries({"category_id": st.sampled_from([3, 7, "3", 7.0, 8, None])}),
    st.fixed_dictionaries({"image_id": st.sampled_from([1, 2, 3, 77, None, "1"])}),
    st.fixed_dictionaries({"iscrowd": st.sampled_from([0, 1, True, "1", None, 2])}),
    st.fixed_dictionaries({"area": st.sampled_from([0, -1, None, "40", math.nan, 1e20])}),
)
RARE = ["gone", "no height", "image twice", "category twice", "category without name"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 11), CHANGES), max_size=5),
    rare=st.sampled_from([None] * 8 + RARE[1:]),
    images=st.integers(1, 6),
)
def test_the_check_agrees_with_training(drawn, changes, rare, images):
    whole = copy.deepcopy(drawn.data)
    try:
        for number, change in changes:
            drawn.data["annotations"][number].update(change)
        del drawn.data["images"][images:]
        if rare and len(drawn.data["images"]) > 1:
            CASES[rare][0](drawn)
        drawn.save()
        found = check(drawn)
        kinds = found.problems.counts()
        if kinds.keys() & READER:
            with pytest.raises(UserError):
                read_coco(drawn.json, drawn.images, ReadOptions(found.masks, training=True))
            return
        expected = {kind: n for kind, n in kinds.items() if kind not in ONLY_CHECKED}
        trained = read_coco(drawn.json, drawn.images, ReadOptions(found.masks, training=True))
        assert trained.images and trained.notes == expected
        data = read_coco(drawn.json, drawn.images, ReadOptions(found.masks))
        expected.pop("empty", None)
        assert data.notes == expected and data.annotations == found.annotations
    finally:
        drawn.data = whole


@st.composite
def valid_files(draw):
    """Annotations of the drawn images: polygons that are rectangles, and their boxes."""
    objects = draw(
        st.lists(
            st.tuples(
                *(st.integers(1, 6), st.sampled_from([3, 7]), st.integers(0, 70)),
                *(st.integers(0, 70), st.integers(4, 80), st.integers(4, 80), st.booleans()),
                st.sampled_from([0, 0, 0, 1]),
            ),
            min_size=1,
            max_size=25,
        )
    )
    annotations = []
    for number, (image, category, x, y, w, h, as_rle, crowd) in enumerate(objects, 1):
        width, height = (96, 80) if image % 2 else (80, 96)
        w, h = min(w, width - x), min(h, height - y)
        shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if as_rle:
            mask = np.zeros((height, width), np.uint8, order="F")
            mask[y : y + h, x : x + w] = 1
            encoded = pycocotools.mask.encode(mask)
            shape = {"size": [height, width], "counts": encoded["counts"].decode()}
        known = {"id": number, "image_id": image, "category_id": category, "iscrowd": crowd}
        annotations.append({**known, "bbox": [x, y, w, h], "area": w * h, "segmentation": shape})
    return annotations


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(annotations=valid_files())
def test_valid_files_have_no_problem_and_right_counts(drawn, annotations):
    drawn.data["annotations"] = annotations
    found = check(drawn)
    present = {a["category_id"] for a in annotations}
    singles = [a for a in annotations if not a["iscrowd"]]
    allowed = {"unused"} if len(present) < 2 else set()
    counts = found.problems.counts()
    assert counts.keys() <= allowed | ({"empty"} if singles else {"nothing"})
    if singles:
        assert counts.get("empty", 0) == 6 - len({a["image_id"] for a in singles})
    numbers = report_numbers(found)
    assert numbers["annotated"] == len({a["image_id"] for a in annotations})
    assert numbers["empty"] == 6 - numbers["annotated"]
    assert numbers["objects"] == len(singles)
    assert numbers["crowds"] == len(annotations) - len(singles)
    for row in numbers["classes"]:
        own = [a for a in annotations if a["category_id"] == row["id"]]
        assert row["images"] == len({a["image_id"] for a in own})
        areas = [a["area"] for a in own if not a["iscrowd"]]
        assert row["objects"] == len(areas)
        assert row["small"] == sum(area < 1024 for area in areas)
        assert row["large"] == sum(area >= 96**2 for area in areas)


@settings(max_examples=60, deadline=None)
@given(mask=st.integers(0, 2**60 - 1), height=st.sampled_from([1, 4, 6, 15]))
def test_runs_of_compressed_masks_are_read(mask, height):
    bits = np.array([mask >> k & 1 for k in range(60)], np.uint8).reshape(height, -1, order="F")
    counts = pycocotools.mask.encode(np.asfortranarray(bits))["counts"].decode()
    size = list(bits.shape)
    rle = to_rle({"size": size, "counts": counts}, *size)
    assert pycocotools.mask.area(rle) == bits.sum()
    with pytest.raises(ValueError):
        to_rle({"size": [height, 99], "counts": counts}, height, 99)
