"""Masks as tools write them: each form is read as it was meant, and broken ones are refused."""

import math

import numpy as np
import pycocotools.mask
import pytest

from e3va.data.masks import to_rle

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
    assert "left out: 1 annotations without a mask" in data.summary()


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
