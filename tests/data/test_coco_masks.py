"""Masks as tools write them: each form is read as it was meant, and broken ones are refused."""

import math

import numpy as np
import pycocotools.mask
import pytest

from e3va.data.check_instances import check_instances
from e3va.data.coco_values import Fault
from e3va.data.masks import read_mask, to_rle

from .test_coco_forms import checked, flat, read, refused

SQUARE = [10, 10, 30, 10, 30, 40, 10, 40]
PAIRS = [SQUARE[i : i + 2] for i in range(0, 8, 2)]


@pytest.mark.parametrize(
    "shape",
    [SQUARE, [[SQUARE]], [[[SQUARE]]], PAIRS, [PAIRS], [[PAIRS]], [[str(v) for v in SQUARE]]],
    ids=["flat", "nested", "nested twice", "points", "nested points", "deep points", "text"],
)
def test_polygons_in_other_forms(drawn, shape):
    record = {"bbox": [10, 10, 20, 30], "area": 600, "segmentation": shape}
    drawn.data["annotations"][0] |= record
    data = read(drawn)
    assert flat(data)[0]["segmentation"] == [SQUARE] and data.notes == {"mask_form": 1}
    assert checked(drawn) == {"mask_form": 1}


def test_several_polygons_in_other_forms(drawn):
    other = [value + 1 for value in SQUARE]
    pairs = [other[i : i + 2] for i in range(0, 8, 2)]
    for shape in ([PAIRS, pairs], [[SQUARE], [other]], [[SQUARE, other]], [PAIRS, other]):
        drawn.data["annotations"][0]["segmentation"] = shape
        assert flat(read(drawn))[0]["segmentation"] == [SQUARE, other]


@pytest.mark.parametrize("shape", [[], [[]], [[[]]], None, "", {}, [None]])
def test_objects_without_a_mask_among_masks_are_dropped(drawn, shape):
    drawn.data["annotations"][0]["segmentation"] = shape
    data = read(drawn, masks=None, training=True)
    assert data.masks and data.notes == {"no_mask": 1} and checked(drawn) == {"no_mask": 1}
    assert "left out: annotations without a mask in a file with masks (1)" in data.summary()


def test_bad_parts_of_masks_are_ignored_and_counted(drawn):
    parts = [[1, 2, 3, 4], [1, 2, 3, 4, 5, math.nan], [1, 2, 3, 4, 5, None], 7, [[]]]
    for shape in ([SQUARE, *parts], [*parts, SQUARE]):
        drawn.data["annotations"][0]["segmentation"] = shape
        data = read(drawn)
        assert flat(data)[0]["segmentation"] == [SQUARE]
        assert data.notes["polygon_left_out"] == 1 and "ignored polygons" in data.summary()
    drawn.data["annotations"][0]["segmentation"] = parts
    assert read(drawn).notes == {"polygons": 1}


def test_files_of_boxes_only(drawn):
    for annotation in drawn.data["annotations"]:
        annotation["segmentation"] = [[]]
    line = refused(drawn, masks=True)
    assert "boxes" in line and "--model faster_rcnn" in line
    data = read(drawn, masks=None, training=True)
    assert not data.masks and len(flat(data)) == 12 and not data.notes
    assert checked(drawn) == {}


def rle_of(drawn, compressed: bool = True):
    mask = np.zeros((80, 96), np.uint8, order="F")
    mask[20:50, 30:60] = 1
    drawn.data["annotations"][0] |= {"bbox": [30, 20, 30, 30], "area": 900}
    if compressed:
        counts = pycocotools.mask.encode(mask)["counts"].decode()
    else:
        counts = [30 * 80 + 20, *[30, 50] * 29, 30, 36 * 80 + 30]
    return mask, {"size": [80, 96], "counts": counts}


@pytest.mark.parametrize("change", ["none", "list", "size", "runs", "compressed"])
def test_run_lengths_in_other_forms(drawn, change):
    mask, rle = rle_of(drawn, compressed=change == "compressed")
    if change == "list":
        rle = [rle]
    elif change == "size":
        rle["size"] = ["80", 96.0]
    elif change == "runs":
        rle["counts"] = [str(rle["counts"][0]), *map(float, rle["counts"][1:])]
    drawn.data["annotations"][0]["segmentation"] = rle
    data = read(drawn)
    plain = to_rle(flat(data)[0]["segmentation"], 80, 96)
    assert np.array_equal(pycocotools.mask.decode(plain), mask)
    expected = {} if change in ("none", "compressed") else {"mask_form": 1}
    assert data.notes == expected and checked(drawn) == expected


@pytest.mark.parametrize(
    "counts",
    [
        [7679], [7681], [-1, 7681], [7680.5], ["x", 7680], [None], [True, 7679], [], [10**30],
        "", "PPPP", "~", "é!", "\ud800", "P" * 40 + "0", "0\x000", {"a": 1}, None, 7680,
    ],
)  # fmt: skip
def test_broken_run_lengths_are_refused_with_their_image(drawn, counts):
    drawn.data["annotations"][0]["segmentation"] = {"size": [80, 96], "counts": counts}
    assert "annotation 1 of 1.png" in refused(drawn)
    assert checked(drawn)["mask"] == 1


EMPTY = {
    "run lengths": {"size": [80, 96], "counts": [7680]},
    "empty runs": {"size": [80, 96], "counts": [5, 0, 7675]},
    "compressed": to_rle({"size": [80, 96], "counts": [7680]}, 80, 96),
    "diagonal": [[5, 5, 40, 40, 5, 5]],
    "between pixels": [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2, 5.1, 5.2]],
    "beyond the image": [[100, 5, 120, 5, 120, 40]],
    "beyond a corner": [[-20, -20, 8, -20, -20, 8]],
    "two lines": [[5, 5, 40, 5, 5, 5], [5, 8, 40, 8, 5, 8]],
}


@pytest.mark.parametrize("name", EMPTY)
def test_masks_without_a_pixel_are_left_out_and_counted(drawn, name):
    shape = EMPTY[name]
    if name == "compressed":
        shape = shape | {"counts": shape["counts"].decode()}
    drawn.data["annotations"][0]["segmentation"] = shape
    data = read(drawn, training=True)
    assert len(flat(data)) == 11 and data.notes["empty_mask"] == data.notes.total() == 1
    assert "left out: masks without a pixel (1)" in data.summary()
    assert checked(drawn) == {"empty_mask": 1}
    assert len(flat(read(drawn, masks=False))) == 12


def test_one_pixel_is_a_mask(drawn):
    for shape in ({"size": [80, 96], "counts": [7, 1, 7672]}, [[5, 5, 40, 5, 5, 5], SQUARE]):
        drawn.data["annotations"][0]["segmentation"] = shape
        assert not read(drawn).notes


@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_left_out_exactly_if_pycocotools_draws_nothing(seed):
    """Most polygons are judged without drawing them, for speed."""
    rng, empty = np.random.default_rng(seed), 0
    for _ in range(1500):
        corners, longest = rng.integers(3, 12), rng.choice([1, 2, 4, 10, 30])
        points = rng.uniform(-1, 1, (corners, 2)) * longest * [1, rng.choice([0, 0.03, 0.1, 1])]
        if rng.random() < 0.7:  # its edges do not cross
            points = points[np.argsort(np.arctan2(points[:, 1], points[:, 0]))]
        angle = rng.uniform(0, math.pi)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        polygon = (points @ turn + rng.uniform(0, 60, 2)).ravel().tolist()
        drawn_pixels = pycocotools.mask.area(to_rle([polygon], 60, 60))
        try:
            read_mask([polygon], 60, 60)
        except Fault as fault:
            assert fault.kind == "empty_mask" and drawn_pixels == 0
            empty += 1
        else:
            assert drawn_pixels > 0, polygon
    assert 100 < empty < 1400


def test_polygons_without_area_in_all_objects_need_a_model_of_boxes(drawn):
    for annotation in drawn.data["annotations"]:
        annotation["segmentation"] = [[1, 2, 30, 40]]
    line = refused(drawn, training=True)
    assert "12" in line and "--model faster_rcnn" in line and "box inside" not in line
    found = check_instances(drawn.data, drawn.json, drawn.images).problems
    assert "faster_rcnn" in next(p.text for p in found if p.kind == "nothing")
    assert len(flat(read(drawn, masks=False, training=True))) == 12
