"""labelme: odd files as people have them, with boxes by hand."""

import base64
import io

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from e3va.data.coco import ReadOptions
from e3va.data.formats import read_annotations, read_class_names

from .format_files import (
    ANY_MASKS,
    POINTS,
    SIZE,
    SQUARE,
    labelme,
    read,
    refused,
    save,
    shape,
    write,
)


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
