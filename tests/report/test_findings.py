"""Matches, confusion and quality of images, worked out by hand."""

import math

import pytest
import torch

from e3va.data.coco import CocoData
from e3va.report.findings import image_quality, label_findings, match, object_findings


def data(*annotations, images=1) -> CocoData:
    """Objects (image, category, box, crowd) of images of 100×100 with the categories 3 and 7."""
    listed = [
        {"id": i, "width": 100, "height": 100, "file_name": f"{i}.png", "path": f"{i}.png"}
        for i in range(1, images + 1)
    ]
    own = {image["id"]: [] for image in listed}
    for number, (image, category, box, crowd) in enumerate(annotations, 1):
        x, y, w, h = box
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        record = {"id": number, "image_id": image, "category_id": category, "bbox": list(box)}
        record |= {"iscrowd": crowd, "area": w * h, "segmentation": outline}
        own[image].append(record)
    categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
    return CocoData("file.json", listed, own, categories)


def result(image, category, box, score=0.9) -> dict:
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "score": score,
        "segmentation": outline,
    }


RED, BLUE, NOTHING = 0, 1, 2


@pytest.mark.parametrize("masks", [True, False])
def test_the_right_class_is_matched_before_a_better_overlap(masks):
    truth = data((1, 3, (10, 10, 40, 40), 0), (1, 7, (70, 70, 20, 20), 0))
    found = [
        result(1, 7, (10, 10, 40, 40)),  # the same box, of the wrong class
        result(1, 3, (10, 10, 40, 30)),  # IoU 0.75
        result(1, 7, (0, 60, 20, 20)),  # beside everything
    ]
    pairs = match(truth.images[0], truth, found, masks)
    assert sorted(pairs) == [(RED, RED), (BLUE, NOTHING), (NOTHING, BLUE), (NOTHING, BLUE)]


def test_a_wrong_class_takes_what_no_right_one_has():
    truth = data((1, 3, (10, 10, 40, 40), 0))
    pairs = match(truth.images[0], truth, [result(1, 7, (10, 10, 40, 40))], True)
    assert pairs == [(RED, BLUE)]


def test_what_lies_in_a_crowd_does_not_count():
    truth = data((1, 3, (0, 0, 60, 60), 1))
    pairs = match(truth.images[0], truth, [result(1, 3, (10, 10, 20, 20))], True)
    assert pairs == []


def test_f1_confusion_and_sizes():
    truth = data(
        (1, 3, (0, 0, 20, 20), 0),  # 400 pixels: small
        (1, 3, (40, 40, 50, 50), 0),  # 2500: medium
        (2, 7, (0, 0, 50, 50), 0),
        images=4,
    )
    found = [
        result(1, 3, (0, 0, 20, 20)),
        result(2, 7, (0, 0, 50, 50), score=0.4),  # not sure enough
        result(3, 7, (5, 5, 30, 30)),
    ]
    findings = object_findings(truth, found, masks=True)
    assert findings.quality == [pytest.approx(2 / 3), 0.0, 0.0, 1.0]  # 2·1 / (2 + 1); nothing in 4
    assert findings.order() == [1, 2, 0, 3]
    assert findings.confusion.tolist() == [[1, 0, 1], [0, 0, 1], [0, 1, 0]]
    assert findings.names == ["red", "blue", "nothing"]
    assert findings.by_size["small"] == pytest.approx(100)
    # The red one of this size is missed, the blue one found; the others do not count.
    assert findings.by_size["medium"] == pytest.approx((0 + 100) / 2)
    assert math.isnan(findings.by_size["large"])
    red = findings.precision["red"]
    # Half of the red ones is found, and nothing else is called red.
    assert red[:51] == pytest.approx(1) and red[51:].max() == 0


def test_nothing_found_at_all():
    findings = object_findings(data((1, 3, (0, 0, 20, 20), 0)), [], masks=False)
    assert findings.quality == [0.0] and findings.by_size["small"] == 0


def test_label_maps_are_sorted_by_the_mean_of_the_classes_that_occur():
    first = torch.tensor([[6, 2], [0, 2]])  # IoU 6/8 and 2/4
    other = torch.tensor([[9, 0], [0, 0]])  # only the first class occurs
    empty = torch.zeros(2, 2, dtype=torch.int64)  # everything is ignored
    quality = [image_quality(confusion) for confusion in (first, other, empty)]
    assert quality == [pytest.approx((6 / 8 + 2 / 4) / 2), 1.0, 1.0]
    findings = label_findings(("no", "yes"), quality, first + other)
    assert findings.order()[0] == 0 and findings.confusion.tolist() == [[15, 2], [0, 2]]
    assert findings.by_size == {} and findings.precision == {}


def test_as_many_detections_count_as_for_the_score():
    truth = data(*((1, 3, (20 * n, 0, 15, 15), 0) for n in range(4)))
    found = [result(1, 3, (20 * n, 0, 15, 15)) for n in range(4)]
    assert object_findings(truth, found, True, limit=4).by_size["small"] == pytest.approx(100)
    half = object_findings(truth, found, True, limit=2).by_size["small"]
    assert half == pytest.approx(100 * 51 / 101)  # precision 1 up to the recall 0.50
