"""Options of a user's own data: what is read, the split, the cap of detections, and the scores."""

import json
import logging
import math
import os
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from e3va import UserError
from e3va.adapter_files.files import read_config
from e3va.backbone import find_backbone
from e3va.detectron2 import engine, load_config
from e3va.detectron2.data import DataOptions, coco_dicts, coco_evaluator
from e3va.detectron2.describe import adopt, describe_config
from e3va.detectron2.evaluator import InstanceEvaluator
from e3va.detectron2.hooks import MetricWriter
from e3va.detectron2.labels import label_dicts
from e3va.detectron2.lean import prepare_model
from e3va.torchvision.options import DEFAULTS
from e3va.torchvision.training_data import open_data

CASCADE, BOXES = "custom/cascade_mask_rcnn_e3va_swin_t.py", "custom/retinanet_e3va_swin_t.py"
LABELS = "custom/semantic_fpn_e3va_swin_t.py"


class OwnData:
    """Pictures of 64×48 in ``images``, each with one object of 20×20, and their COCO file."""

    def __init__(self, folder, count):
        self.images, self.json = folder / "images", folder / "own.json"
        self.images.mkdir(parents=True)
        self.data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
        for number in range(1, count + 1):
            Image.new("RGB", (64, 48), (90, 9 * number, 60)).save(self.images / f"{number}.png")
            size = {"width": 64, "height": 48}
            self.data["images"].append({"id": number, "file_name": f"{number}.png", **size})
            self.data["annotations"].append(square(number, number, 10, 10, 20))
        self.save()

    def save(self):
        self.json.write_text(json.dumps(self.data))

    def given(self, split):
        return [f"data.{split}.json={self.json}", f"data.{split}.images={self.images}"]

    @property
    def paths(self):
        return str(self.json), str(self.images)


def square(identity, image, x, y, side, **changes):
    outline = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {
        **{"id": identity, "image_id": image, "category_id": 1, "iscrowd": 0},
        **{"bbox": [x, y, side, side], "area": side * side, "segmentation": [outline]},
        **changes,
    }


@pytest.fixture
def own(tmp_path):
    return OwnData(tmp_path / "own", 2)


@pytest.fixture
def ten(tmp_path):
    return OwnData(tmp_path / "own", 10)


@pytest.fixture
def overrides(small_overrides):
    """Overrides for a small cascade; the data and the classes are not given."""
    places = ("data.train.json", "data.train.images", "data.val.json", "data.val.images")
    return [o for o in small_overrides if not o.startswith(places)]


def names(records):
    return [record["file_name"].rpartition("/")[2] for record in records]


def nodes(cfg):
    return cfg.dataloader.train.dataset, cfg.dataloader.test.dataset


# --- reading ---


def test_every_option_reaches_training_and_validation():
    given = ["skip_missing=true", "use_crowds=true", "keep_empty=true", "max_detections=7"]
    cfg = load_config(
        CASCADE, [*(f"data.{o}" for o in given), "data.val_split=0.25", "train.seed=3"]
    )
    cfg.data.classes = ["nut"]
    expected = DataOptions(True, True, True, 7, 0.25, 3, ("nut",))
    for node in (*nodes(cfg), cfg.dataloader.evaluator):
        assert instantiate(node.options) == expected


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("data.skip_missing=1", "1 true false"),
        ("data.max_detections=0", "0 1"),
        ("data.max_detections=many", "many whole"),
        ("data.val_split=1", "1 0"),
        ("data.val_split=-0.1", "-0.1 0"),
        ("data.keep_empty=yes please", "yes true false"),
    ],
)
def test_values_of_the_options_are_checked(override, values):
    with pytest.raises(UserError) as caught:
        load_config(CASCADE, [override])
    line = caught.value.line
    assert line.startswith(override.partition("=")[0]) and all(v in line for v in values.split())


def test_a_config_of_an_earlier_version_needs_no_options(own, tmp_path, overrides):
    """Its nodes lack them, and its keys of ``data`` too."""
    cfg = load_config(CASCADE, [*overrides, *own.given("train"), *own.given("val")])
    for node in (*nodes(cfg), cfg.dataloader.evaluator):
        del node.options
    for key in ("skip_missing", "use_crowds", "keep_empty", "val_split"):
        del cfg.data[key]
    cfg.model.proposal_generator.post_nms_topk = [30, 30]
    cfg.model.proposal_generator.pre_nms_topk = [2000, 1000]
    for predictor in cfg.model.roi_heads.box_predictors:
        predictor.test_topk_per_image = 100
    del cfg.data.max_detections
    LazyConfig.save(cfg, str(tmp_path / "old.yaml"))
    old = engine.prepare(load_config(tmp_path / "old.yaml"))
    assert len(instantiate(old.dataloader.train.dataset)) == 2
    own.data["categories"][0]["name"] = "bolt"
    own.save()
    with pytest.raises(UserError, match="bolt.*nut"):
        engine.prepare(old)


@pytest.mark.parametrize("training", [True, False])
def test_images_that_are_missing_are_skipped_on_request(own, training):
    (own.images / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png"):
        coco_dicts(*own.paths, training=training)
    kept = coco_dicts(*own.paths, training=training, options=DataOptions(skip_missing=True))
    assert names(kept) == ["1.png"]


@pytest.mark.parametrize("training", [True, False])
def test_crowds_are_objects_on_request(own, training):
    for annotation in own.data["annotations"]:
        annotation["iscrowd"] = 1
    own.save()
    records = coco_dicts(*own.paths, training=training, options=DataOptions(use_crowds=True))
    assert [[a["iscrowd"] for a in r["annotations"]] for r in records] == [[0], [0]]


def test_classes_that_differ_are_one_clear_line(own):
    for training in (True, False):
        with pytest.raises(UserError, match="nut.*bolt"):
            coco_dicts(*own.paths, training=training, options=DataOptions(classes=["bolt"]))


def test_a_class_of_the_model_stays_a_class_of_the_validation_data(own, tmp_path):
    """The training data use the parent category, which the validation data do not."""
    own.data["categories"] = [
        {"id": 1, "name": "nut", "supercategory": "food"},
        {"id": 2, "name": "food", "supercategory": "none"},
    ]
    own.save()
    options = DataOptions(classes=["nut", "food"])
    assert len(coco_dicts(*own.paths, training=False, options=options)) == 2
    evaluator = coco_evaluator(*own.paths, output_dir=str(tmp_path / "out"), options=options)
    assert evaluator._metadata.thing_classes == ["nut", "food"]


def validated(own, overrides, json_file):
    given = [*own.given("train"), f"data.val.json={json_file}", f"data.val.images={own.images}"]
    return engine.prepare(load_config(CASCADE, [*overrides, *given]))


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_cannot_be_used_stop_before_the_training(own, overrides, split, tmp_path):
    Image.fromarray(np.zeros((48, 64), np.float32)).save(own.images / "1.tif")
    own.data["images"][0]["file_name"] = "1.tif"
    Image.new("RGB", (48, 64)).save(own.images / "2.png")
    own.save()
    good = OwnData(tmp_path / "good", 2)
    sides = {"train": good, "val": good, split: own}
    given = [text for side, data in sides.items() for text in data.given(side)]
    with pytest.raises(UserError, match=r"2 of 2 images .*1\.tif has float values"):
        engine.prepare(load_config(CASCADE, [*overrides, *given]))
    own.data["images"][0]["file_name"] = "1.png"
    own.save()
    with pytest.raises(UserError, match=r"1 of 2 images .*2\.png is 48×64, .* 64×48"):
        engine.prepare(load_config(CASCADE, [*overrides, *given]))
    assert not (tmp_path / "output").exists()


def test_only_one_process_of_a_machine_reads_the_headers(own, overrides, monkeypatch):
    Image.new("RGB", (48, 64)).save(own.images / "2.png")
    monkeypatch.setenv("LOCAL_RANK", "1")
    validated(own, overrides, own.json)


def test_validation_data_with_only_crowds_are_reported(own, overrides, tmp_path, caplog):
    validated(own, overrides, own.json)
    assert "no object" not in caplog.text
    for annotation in own.data["annotations"]:
        annotation["iscrowd"] = 1
    crowds = tmp_path / "crowds.json"
    crowds.write_text(json.dumps(own.data))
    validated(own, overrides, crowds)
    (line,) = (r.message for r in caplog.records if "no object" in r.message)
    assert str(crowds) in line and "data.use_crowds=true" in line


# --- images without objects ---


def test_images_without_objects_are_kept_on_request(own):
    own.data["annotations"].pop()
    own.save()
    assert names(coco_dicts(*own.paths, training=True)) == ["1.png"]
    kept = coco_dicts(*own.paths, training=True, options=DataOptions(keep_empty=True))
    assert names(kept) == ["1.png", "2.png"] and kept[1]["annotations"] == []


@pytest.mark.parametrize("memory", ["standard", "lean"])
@pytest.mark.parametrize("kind", [CASCADE, BOXES])
def test_a_batch_without_objects_trains_every_parameter(own, overrides, kind, memory):
    """Also with several processes, where a parameter without a gradient would stop them."""
    own.data["annotations"].pop()
    own.save()
    small = overrides if kind == CASCADE else NARROW
    backbone = f"model.backbone.bottom_up.memory={memory}"
    cfg = load_config(kind, [*small, *own.given("train"), "data.keep_empty=true", backbone])
    engine.resolve_classes(cfg)
    loader = instantiate(cfg.dataloader.train)
    batches = islice(loader, 20)
    example = next(e for batch in batches for e in batch if not len(e["instances"]))
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    prepare_model(model, mixed=False)
    with EventStorage(0):
        losses = model([example, example])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    trunk = {id(p) for p in find_backbone(model)[1].trunk.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in trunk:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_a_box_that_float32_cannot_tell_from_a_line_is_left_out(own):
    """The other object of the image stays."""
    thin = square(9, 1, 30, 30, 10, bbox=[30, 30, 1e-7, 10], segmentation=None)
    own.data["annotations"].append(thin)
    own.save()
    cfg = load_config(BOXES, [*NARROW, *own.given("train")])
    loader = instantiate(cfg.dataloader.train)
    batch = next(iter(loader))
    assert [len(example["instances"]) for example in batch] == [1, 1]
    assert all((e["instances"].gt_boxes.area() > 0).all() for e in batch)


NARROW = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.out_channels=16",
    "model.head.conv_dims=[16, 16]",
    "model.head.input_shape=[" + ", ".join(5 * ["{channels: 16}"]) + "]",
    "data.train.short_edge=[48]",
    "data.val.short_edge=48",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
]


# --- the split ---


def test_the_split_has_every_image_once_and_depends_on_the_seed(ten):
    found = {}
    for seed in (0, 0, 1, 2):
        options = DataOptions(val_split=0.3, seed=seed)
        sides = [names(coco_dicts(*ten.paths, training=t, options=options)) for t in (True, False)]
        assert [len(side) for side in sides] == [7, 3]
        assert sorted([*sides[0], *sides[1]]) == sorted(f"{n}.png" for n in range(1, 11))
        assert found.setdefault(seed, sides) == sides
    assert len({tuple(sides[1]) for sides in found.values()}) > 1


def test_the_split_is_stored_and_an_evaluation_has_the_same(ten, overrides, tmp_path):
    given = [*overrides, *ten.given("train"), "data.val_split=0.2"]
    cfg = engine.prepare(load_config(CASCADE, given))
    output = tmp_path / "output"
    stored = json.loads((output / "split.json").read_text())["validation"]
    train, val = (names(instantiate(node)) for node in nodes(cfg))
    assert sorted(val) == stored and len(val) == 2 and not {*train} & {*val} and len(train) == 8
    truth = instantiate(cfg.dataloader.evaluator)._coco_api
    assert sorted(image["file_name"] for image in truth.loadImgs(truth.getImgIds())) == stored

    LazyConfig.save(cfg, str(output / "config.yaml"))
    (output / "last_checkpoint").write_text("model_final.pth")
    again = engine.prepare(load_config(output / "config.yaml"), resume=True)
    assert names(instantiate(again.dataloader.test.dataset)) == val
    for changes in (["train.seed=1"], ["data.val_split=0.5"]):
        with pytest.raises(UserError, match=r"split\.json"):
            engine.prepare(load_config(output / "config.yaml", changes), resume=True)
    assert json.loads((output / "split.json").read_text())["validation"] == stored
    engine.prepare(load_config(output / "config.yaml", ["data.val_split=0.5"]))  # a new run
    assert len(json.loads((output / "split.json").read_text())["validation"]) == 5


def test_a_split_and_validation_data_contradict_one_another(ten, overrides, tmp_path):
    other = OwnData(tmp_path / "other", 1)
    given = [*overrides, *ten.given("train"), *other.given("val"), "data.val_split=0.2"]
    with pytest.raises(UserError, match=rf"data.val_split=0.2.*{other.json}"):
        engine.prepare(load_config(CASCADE, given))
    assert not (tmp_path / "output").exists()


def test_the_validation_data_of_a_data_yaml_are_found(own, monkeypatch):
    """Without a share; with one, there would be two sets of validation data."""
    monkeypatch.setattr("e3va.detectron2.own_data.own_validation", lambda path: True)
    given = ["data.train.json=/yolo/data.yaml"]
    cfg = load_config(CASCADE, given)
    engine.resolve_validation(cfg)
    assert (cfg.data.val.json, cfg.data.val.images) == ("/yolo/data.yaml", "")
    cfg = load_config(CASCADE, [*given, *own.given("val")])
    engine.resolve_validation(cfg)
    assert cfg.data.val.json == str(own.json)
    with pytest.raises(UserError, match=r"data.val_split=0.1.*/yolo/data.yaml"):
        engine.resolve_validation(load_config(CASCADE, [*given, "data.val_split=0.1"]))


@pytest.mark.parametrize("kind", ["coco", "yolo", "labels"])
def test_both_frameworks_choose_the_same_images(kind, drawn, drawn_labels, tmp_path):
    options = {**DEFAULTS, "images": str(drawn.images), "val_split": 0.34}
    if kind == "yolo":
        pytest.importorskip("supervision")
        for number in range(1, 7):
            folder = tmp_path / ("a" if number < 4 else "yolo/z")
            for name in ("images", "labels"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            (drawn.images / f"{number}.png").rename(folder / f"images/{number}.png")
            (folder / f"labels/{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
        options |= {"images": None, "annotations": str(tmp_path / "yolo/data.yaml")}
        (tmp_path / "yolo/data.yaml").write_text(
            "train: [z/images, ../a/images]\nnames: [red]\n", encoding="utf-8"
        )
    elif kind == "coco":  # sorted, the names have another order than the paths
        (drawn.images.parent / "more").mkdir()
        for image in drawn.data["images"][3:]:
            name = f"../more/{image['file_name']}"
            (drawn.images / image["file_name"]).rename(drawn.images / name)
            image["file_name"] = name
        drawn.save()
        options["annotations"] = str(drawn.json)
    else:
        options["labels"] = str(drawn_labels)
    for seed in range(6):
        validation = open_data({**options, "seed": seed}, None).validation
        own = DataOptions(val_split=0.34, seed=seed)
        if kind == "labels":
            settings = {"training": False, "classes": validation.classes, "options": own}
            found = label_dicts(options["images"], options["labels"], **settings)
        else:
            place = options["annotations"], options["images"] or ""
            found = coco_dicts(*place, training=False, masks=False, options=own)
        expected = [os.path.realpath(record["path"]) for record in validation.records]
        assert sorted(os.path.realpath(r["file_name"]) for r in found) == sorted(expected)
        assert len(expected) == 2


def test_images_that_train_and_validate_are_counted(ten, overrides, caplog):
    engine.prepare(load_config(CASCADE, [*overrides, *ten.given("train"), *ten.given("val")]))
    assert "10 of the 10 validation images" in caplog.text


def test_label_maps_are_split_too(drawn, drawn_labels, tmp_path):
    given = [f"data.train.images={drawn.images}", f"data.train.labels={drawn_labels}"]
    given += [f"train.output_dir={tmp_path / 'out'}", "train.device=cpu", "data.val_split=0.34"]
    cfg = engine.prepare(load_config(LABELS, given))
    train, val = (names(instantiate(node)) for node in nodes(cfg))
    assert (len(train), len(val)) == (4, 2) and not {*train} & {*val}
    assert json.loads((tmp_path / "out" / "split.json").read_text())["validation"] == sorted(val)
    evaluator = instantiate(cfg.dataloader.evaluator)
    assert len(evaluator.input_file_to_gt_file) == 2


# --- the cap of detections ---


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


# --- scores ---


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


# --- what stops a run before it writes ---


def test_training_data_that_cannot_be_read_stop_a_run_before_it_writes(own, overrides, tmp_path):
    (own.images / "2.png").unlink()
    cfg = load_config(CASCADE, [*overrides, *own.given("train")])
    with pytest.raises(UserError, match=r"2\.png"):
        engine.prepare(cfg)
    cfg.data.train.images = ""
    with pytest.raises(UserError, match=r"data\.train\.images"):
        engine.prepare(cfg)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("key", ["init_checkpoint", "trunk"])
def test_weights_that_do_not_exist_stop_a_run_before_it_writes(own, overrides, tmp_path, key):
    given = [*overrides, *own.given("train"), f"train.{key}={tmp_path / 'gone.pth'}"]
    with pytest.raises(UserError, match=r"gone\.pth"):
        engine.prepare(load_config(CASCADE, given))
    assert not (tmp_path / "output").exists()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "last_checkpoint").write_text("model_final.pth")
    engine.prepare(load_config(CASCADE, given), resume=True)  # it needs no other weights
    with pytest.raises(UserError, match="init_checkpoint" if key == "trunk" else r"gone\.pth"):
        engine.prepare(load_config(CASCADE, given), eval_only=True)


def test_masks_of_the_file_and_of_the_mapper_are_the_same(own):
    """A base line: without options, the data are what they were."""
    cfg = load_config(CASCADE, [*own.given("train"), "data.train.short_edge=[48]"])
    cfg.dataloader.train.num_workers = 0
    for example in next(iter(instantiate(cfg.dataloader.train))):
        assert example["instances"].gt_masks.area().tolist() == [400]
        assert np.allclose(example["instances"].gt_boxes.area(), 400)
