"""Scores equal counts by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va.data.scores import confusion_matrix
from e3va.torchvision.data import read_example
from e3va.torchvision.evaluate import coco_scores, evaluate, label_scores, to_coco


class Oracle(torch.nn.Module):
    """A model that returns given answers, one for each image."""

    def __init__(self, answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, images):
        assert not self.training and len(images) == 1
        return [next(self.answers)]


def perfect(dataset):
    for record in dataset.records:
        target = read_example(record, dataset)[1]
        masks = target["masks"].stack()[:, None].float()
        yield {**target, "masks": masks, "scores": torch.linspace(0.6, 0.9, len(masks))}


def test_perfect_predictions_score_one_hundred(instances):
    model = Oracle(list(perfect(instances))).train()
    scores = evaluate(model, instances, torch.device("cpu"))
    assert scores.values == {
        f"{k} {n}": 100 for n in ("box", "mask") for k in ("AP", "AP50", "AP75")
    }
    assert scores.per_class == {"red": 100, "blue": 100}
    assert model.training  # as it was before


def test_half_of_each_mask_counts_only_at_low_overlap(instances):
    """The boxes are right. Masks of half the height have IoU 0.5, one of the ten thresholds."""
    answers = list(perfect(instances))
    for answer in answers:
        for box, mask in zip(answer["boxes"].int(), answer["masks"], strict=True):
            mask[:, (box[1] + box[3]) // 2 :] = 0
    scores = evaluate(Oracle(answers), instances, torch.device("cpu"))
    assert scores.values["AP box"] == 100
    assert scores.values["AP50 mask"] == 100 and scores.values["AP75 mask"] == 0
    assert scores.values["AP mask"] == pytest.approx(10)
    assert scores.per_class["red"] == pytest.approx(10)


def test_wrong_classes_and_no_predictions_score_nothing(instances):
    answers = list(perfect(instances))
    for answer in answers:
        answer["labels"] = 3 - answer["labels"]
    assert evaluate(Oracle(answers), instances, torch.device("cpu")).values["AP box"] == 0
    assert coco_scores([], instances).values["AP mask"] == 0


def test_results_have_category_ids_and_boxes_of_the_file():
    found = {
        "boxes": torch.tensor([[1.0, 2.0, 4.0, 7.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.75]),
        "masks": torch.tensor([[[[0.6, 0.5], [0.4, 0.1]]]]),
    }
    (record,) = to_coco(found, 9, (3, 7))
    assert record["image_id"] == 9 and record["category_id"] == 7 and record["score"] == 0.75
    assert record["bbox"] == [1, 2, 3, 5]
    import pycocotools.mask

    assert pycocotools.mask.decode(record["segmentation"]).tolist() == [[1, 1], [0, 0]]


def test_label_scores_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 255]])
    predicted = torch.tensor([[0, 1, 1, 1], [2, 0, 2, 3]])
    scores = label_scores(confusion_matrix(truth, predicted, 4), ("a", "b", "c", "d"))
    # a: 1 of {0, 0, predicted 0} = 1/3; b: 2/3; c: 2/3; d: in neither, so it does not count.
    assert scores.per_class["a"] == pytest.approx(100 / 3)
    assert scores.per_class["b"] == scores.per_class["c"] == pytest.approx(200 / 3)
    assert math.isnan(scores.per_class["d"])
    assert scores.values["mIoU"] == pytest.approx(500 / 9)
    assert scores.values["pixel accuracy"] == pytest.approx(500 / 7)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_confusion_matrix_counts_pairs(data):
    count = data.draw(st.integers(1, 5))
    size = data.draw(st.integers(1, 30))
    label = st.sampled_from([*range(count), 255])
    truth = data.draw(st.lists(label, min_size=size, max_size=size))
    predicted = data.draw(st.lists(st.integers(0, count - 1), min_size=size, max_size=size))
    matrix = confusion_matrix(torch.tensor(truth), torch.tensor(predicted), count)
    pairs = list(zip(truth, predicted, strict=True))
    for row in range(count):
        for column in range(count):
            assert matrix[row, column] == pairs.count((row, column))


def test_table_names_every_score_and_class(instances):
    table = coco_scores([], instances).table()
    names = [line.split()[0] for line in table.splitlines() if not line.endswith(":")]
    assert names == ["AP", "AP50", "AP75"] * 2 + ["red", "blue"]
    assert "AP mask of each class:" in table.splitlines()
