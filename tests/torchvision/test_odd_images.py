"""Images of extreme shapes and data of odd content train, are scored and are drawn."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from e3va.data.coco import ReadOptions
from e3va.torchvision.data import TrainMapper, coco_dataset, label_dataset, read_example
from e3va.torchvision.evaluate import Scores, coco_scores, evaluate
from e3va.torchvision.predict import LARGEST, draw_instances, predict_images

SHAPES = [(6000, 2), (1, 6000), (260, 1), (1, 1)]  # width and height
CPU = torch.device("cpu")


class Answers(torch.nn.Module):
    """A model that returns given answers, one for each image."""

    def __init__(self, answers, limit=100):
        super().__init__()
        self.answers, self.detections_per_img = iter(answers), limit

    def forward(self, images):
        return [next(self.answers)]


def perfect(dataset):
    """Return answers that equal the true objects."""
    answers = []
    for record in dataset.records:
        target = dataset.read_target(record)
        if "masks" in target:
            target["masks"] = target["masks"].stack()[:, None].float()
        answers.append({**target, "scores": torch.linspace(0.9, 0.6, len(target["labels"]))})
    return answers


@pytest.fixture
def write(tmp_path):
    """Return a function that writes pictures with given sizes and boxes, and reads them."""

    def run(sizes, boxes, masks=True, **options):
        images, annotations = [], []
        for number, (width, height) in enumerate(sizes, 1):
            Image.new("RGB", (width, height), (90, 120, 40)).save(tmp_path / f"{number}.png")
            entry = {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
            images.append(entry)
            for x, y, w, h in boxes[number - 1]:
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 4}
                entry |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                if masks:
                    entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                annotations.append(entry)
        categories = [{"id": 4, "name": "thing"}, {"id": 9, "name": "other"}]
        data = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "data.json").write_text(json.dumps(data))
        options = ReadOptions(masks=masks, **options)
        return coco_dataset(str(tmp_path / "data.json"), str(tmp_path), options)

    return run


def check_training(model, dataset):
    for record in dataset.records:
        image, target = TrainMapper(dataset)(record)
        losses = model.train()([image], [target])
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_extreme_images_with_objects(kind, make_small, write, tmp_path):
    config, model = make_small(kind, classes=("thing", "other"))
    model.rpn._post_nms_top_n["testing"] = 50
    dataset = write(SHAPES, [[(0, 0, min(w, 40), min(h, 40))] for w, h in SHAPES])
    check_training(model, dataset)
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 5
    assert not math.isnan(evaluate(model, dataset, CPU).values["AP mask"])
    files = [tmp_path / f"{number}.png" for number in range(1, 5)]
    assert predict_images(model.eval(), config, files, tmp_path / "drawn", 0.0) == []
    for (width, height), file in zip(SHAPES, files, strict=True):
        with Image.open(tmp_path / "drawn" / file.name) as picture:
            scale = picture.width // width
            assert picture.size == (width * scale, height * scale)
            assert max(picture.size) <= max(LARGEST, width, height)
    found = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert {a["image_id"] for a in found["annotations"]} == {1, 2, 3, 4}


@pytest.mark.slow
def test_extreme_images_with_label_maps(make_small, write, tmp_path):
    config, model = make_small("semantic_fpn", classes=("nothing", "thing"))
    folders = tmp_path / "images", tmp_path / "labels"
    for folder in folders:
        folder.mkdir()
    files = [folders[0] / f"{number}.png" for number in range(4)]
    for file, size in zip(files, SHAPES, strict=True):
        Image.new("RGB", size, (90, 120, 40)).save(file)
        Image.new("L", size, 1).save(folders[1] / file.name)
    dataset = label_dataset(str(folders[0]), str(folders[1]), ("nothing", "thing"))
    check_training(model, dataset)
    assert 0 <= evaluate(model, dataset, CPU).values["pixel accuracy"] <= 100
    assert predict_images(model.eval(), config, files, tmp_path / "drawn", 0.0) == []
    with Image.open(tmp_path / "drawn" / "labels" / "0.png") as labels:
        assert labels.size == SHAPES[0]


@pytest.mark.parametrize(
    "width, height, scale",
    [(64, 48, 10), (480, 900, 1), (260, 1, 7), (1, 1, 480), (6000, 2, 1), (100, 640, 3)],
)
def test_small_images_are_enlarged_up_to_a_limit(width, height, scale):
    found = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": torch.tensor([1])}
    image = torch.full((3, height, width), 77, dtype=torch.uint8)
    picture = draw_instances(image, found, ("thing",))  # boxes only
    assert picture.shape == (3, height * scale, width * scale) and picture.dtype == torch.uint8
    assert (image == 77).all()


def test_240_perfect_predictions_score_100_with_a_higher_cap(write):
    grid = [(x * 4, y * 4, 3, 3) for y in range(12) for x in range(20)]
    dataset = write([(80, 48)], [grid])
    assert len(grid) == 240
    scores = evaluate(Answers(perfect(dataset), limit=300), dataset, CPU)
    assert set(scores.values.values()) == {100.0} and len(scores.values) == 6
    capped = evaluate(Answers(perfect(dataset)), dataset, CPU)
    # 100 of 240 objects are found: 42 of the 101 points of recall have the precision 1.
    assert capped.values["AP mask"] == pytest.approx(100 * 42 / 101)


def test_annotation_ids_from_zero_score_100(drawn):
    for number, annotation in enumerate(drawn.data["annotations"]):
        annotation["id"] = number
    drawn.save()
    dataset = coco_dataset(str(drawn.json), str(drawn.images))
    scores = evaluate(Answers(perfect(dataset)), dataset, CPU)
    assert set(scores.values.values()) == {100.0}


def test_boxes_without_masks_are_scored_by_boxes(write):
    boxes = [[(2, 3, 20, 20)], [(5, 5, 30, 8), (40, 20, 9, 9)]]
    dataset = write([(64, 48)] * 2, boxes, masks=False)
    assert "masks" not in dataset.read_target(dataset.records[0])
    mapped = TrainMapper(dataset)(dataset.records[1])[1]
    assert mapped.keys() == {"boxes", "labels"} and len(mapped["boxes"]) == 2
    scores = evaluate(Answers(perfect(dataset)), dataset, CPU)
    assert scores.values == {"AP box": 100, "AP50 box": 100, "AP75 box": 100}
    assert scores.per_class["thing"] == 100 and math.isnan(scores.per_class["other"])
    with_masks = write([(64, 48)] * 2, boxes)
    answers = [{k: v for k, v in a.items() if k != "masks"} for a in perfect(with_masks)]
    assert evaluate(Answers(answers), with_masks, CPU).values == scores.values


def test_nothing_to_find_is_null_and_nothing_found_is_zero(write):
    dataset = write([(64, 48)], [[]])
    scores = coco_scores([], dataset)
    assert all(math.isnan(value) for value in scores.values.values()) and len(scores.values) == 6
    data = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert data["scores"] == dict.fromkeys(scores.values)
    assert data["per_class"] == {"thing": None, "other": None}
    one = {"boxes": torch.tensor([[1.0, 2, 9, 9]]), "labels": torch.tensor([1])}
    one |= {"scores": torch.tensor([0.9]), "masks": torch.ones(1, 1, 48, 64)}
    assert math.isnan(evaluate(Answers([one]), dataset, CPU).values["AP box"])
    assert set(coco_scores([], write([(64, 48)], [[(1, 1, 9, 9)]])).values.values()) == {0.0}
    assert Scores({"a": 12.5}, {"b": 1.0}).to_json() == {
        "scores": {"a": 12.5},
        "per_class": {"b": 1.0},
    }


def test_images_in_any_order_score_100(write):
    dataset = write([(64, 48)] * 3, [[(2, 3, 20, 20)], [], [(9, 9, 8, 8)]])
    dataset.records.reverse()
    scores = evaluate(Answers(perfect(dataset)), dataset, CPU)
    assert set(scores.values.values()) == {100.0}


def test_targets_of_empty_images(write):
    dataset = write([(64, 48)], [[]])
    image, target = read_example(dataset.records[0], dataset)
    assert image.shape == (3, 48, 64) and np.isclose(image[0, 0, 0], 90 / 255)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 48, 64)
