"""The cap of detections, and scores of a user's own data."""

import json
import logging
import math

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from e3va.adapter_files.files import read_config
from e3va.detectron2 import engine, load_config
from e3va.detectron2.data import DataOptions, coco_dicts, coco_evaluator
from e3va.detectron2.describe import adopt, describe_config
from e3va.detectron2.evaluator import InstanceEvaluator
from e3va.detectron2.hooks import MetricWriter

from .own_files import BOXES, CASCADE, square


@pytest.mark.parametrize(("most", "candidates"), [(7, 1000), (300, 1000), (1500, 1500)])
def test_one_key_caps_model_and_evaluator(own, tmp_path, most, candidates):
    given = [*own.given("train"), *own.given("val"), f"data.max_detections={most}"]
    narrow = [f"train.output_dir={tmp_path}", "model.backbone.bottom_up.preset=swin_nano"]
    for name in (CASCADE, BOXES):
        cfg = load_config(name, [*given, *narrow])
        with torch.device("meta"):
            model = instantiate(cfg.model)
        if name == CASCADE:
            predictors = model.roi_heads.box_predictor
            assert {predictor.test_topk_per_image for predictor in predictors} == {most}
            rpn = model.proposal_generator
            assert rpn.post_nms_topk == {True: 1000, False: candidates}
            assert rpn.pre_nms_topk == {True: 2000, False: candidates}
        else:
            assert model.max_detections_per_image == most
            assert model.test_topk_candidates == candidates
        assert instantiate(cfg.dataloader.evaluator)._max_dets_per_image == [1, 10, most]


def test_the_cap_is_part_of_an_adapters_description(own):
    cfg = load_config(CASCADE, [*own.given("train"), "data.max_detections=300"])
    about = describe_config(cfg)
    assert about["model"] == {"config": CASCADE, "max_detections": 300}

    class Description:
        model, classes, backbone = about["model"], ("nut",), None

    class Backbone:
        preset, out_features = __import__("e3va").get_preset("swin_t"), ("p0",)
        highway = __import__("e3va.highway", fromlist=["x"]).highway_config()

    Description.backbone = Backbone
    assert adopt(load_config(CASCADE), Description).data.max_detections == 300
    Description.model = {"config": CASCADE, "max_detections": "${oc.env:HOME}"}
    assert adopt(load_config(CASCADE), Description).data.max_detections == 100


def many_objects(own):
    """Put 240 objects into the first image, and none into the second."""
    places = [(x, y) for y in range(0, 45, 4) for x in range(0, 60, 3)]
    assert len(places) == 240
    own.data["annotations"] = [
        square(number, 1, x, y, 2) for number, (x, y) in enumerate(places, 1)
    ]
    own.save()


def score(own, folder, options, keep=lambda number: True):
    """Score the ground truth, or those of its boxes that ``keep`` keeps, as predictions."""
    evaluator = coco_evaluator(*own.paths, output_dir=str(folder), options=options)
    evaluator.reset()
    for record in coco_dicts(*own.paths, training=False, options=options):
        kept = [a for number, a in enumerate(record["annotations"]) if keep(number)]
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in kept], dtype=torch.float32).reshape(-1, 4)
        found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        masks = torch.zeros(len(kept), 48, 64, dtype=torch.bool)
        for mask, (x, y, w, h) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y : y + h, x : x + w] = True
        found.pred_masks = masks
        found.scores = torch.ones(len(kept))
        found.pred_classes = torch.tensor([a["category_id"] for a in kept], dtype=torch.long)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


def test_240_perfect_predictions_score_100_only_with_a_larger_cap(own, tmp_path):
    many_objects(own)
    capped = score(own, tmp_path / "a", DataOptions())
    assert capped["bbox"]["AP"] < 50
    whole = score(own, tmp_path / "b", DataOptions(max_detections=300))
    assert whole["bbox"]["AP"] == whole["segm"]["AP"] == 100


def test_more_objects_than_the_cap_are_one_warning(own, caplog):
    many_objects(own)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            coco_dicts(*own.paths, training=True)
        coco_dicts(*own.paths, training=True, options=DataOptions(max_detections=240))
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert all(text in messages[0] for text in ("1 of 1", "240", "100", "data.max_detections=240"))


@pytest.mark.parametrize("ids", [[0, 1], ["a", "b"], [None, None], [7, 7]])
def test_perfect_predictions_score_100_whatever_the_annotation_ids(own, tmp_path, ids):
    for annotation, identity in zip(own.data["annotations"], ids, strict=True):
        annotation["id"] = identity
    own.save()
    found = score(own, tmp_path, DataOptions())
    assert found["bbox"]["AP"] == found["segm"]["AP"] == 100


def test_a_model_that_finds_nothing_scores_0_and_a_class_without_objects_nothing(own, tmp_path):
    own.data["categories"].append({"id": 2, "name": "bolt"})
    own.save()
    options = DataOptions(classes=["nut", "bolt"])
    found = score(own, tmp_path, options, keep=lambda number: False)["bbox"]
    assert (found["AP"], found["AP-nut"]) == (0, 0)
    assert math.isnan(found["AP-bolt"]) and math.isnan(found["APl"])
    assert math.isnan(score(own, tmp_path, options)["bbox"]["AP-bolt"])


def test_equal_names_of_categories_have_a_score_each(own, tmp_path):
    own.data["categories"].append({"id": 2, "name": "nut"})
    own.data["annotations"][1]["category_id"] = 2
    own.save()
    found = score(own, tmp_path, DataOptions(), keep=lambda number: True)["bbox"]
    assert [v for name, v in found.items() if name.startswith("AP-")] == [
        pytest.approx(100),
        pytest.approx(100),
    ]


def test_scores_without_any_object_are_null(own, tmp_path):
    """In Detectron2's metrics, as in every other JSON file of the run."""
    own.data["annotations"] = []
    own.save()
    scores = score(own, tmp_path, DataOptions())["bbox"]
    assert all(math.isnan(value) for value in scores.values())
    writer = MetricWriter(str(tmp_path / "metrics.json"))
    with EventStorage(4) as storage:
        storage.put_scalars(**scores, smoothing_hint=False)
        storage.put_scalar("loss", 0.5, smoothing_hint=False)
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("loss", float("inf"), smoothing_hint=False)
        writer.write()
    writer.close()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    read = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert read == [
        {**dict.fromkeys(scores), "loss": 0.5, "iteration": 4},
        {"loss": None, "iteration": 5},
    ]


def test_a_model_is_written_before_it_is_scored(pretrained_config, tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no scores")

    monkeypatch.setattr(InstanceEvaluator, "evaluate", fail)
    with pytest.raises(RuntimeError, match="no scores"):
        engine.train(engine.prepare(pretrained_config))
    output = tmp_path / "output"
    assert (output / "model_final.pth").is_file()
    assert read_config(output).steps == 2 and read_config(output).scores == {}
    monkeypatch.undo()
    engine.train(engine.prepare(pretrained_config, resume=True), resume=True)
    assert "bbox/AP" in read_config(output).scores
    lines = (output / "metrics.json").read_text().splitlines()
    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)
