"""Options of a user's own data: what is read, and what stops a run before it writes."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from PIL import Image

from e3va import UserError
from e3va.backbone import find_backbone
from e3va.detectron2 import engine, load_config
from e3va.detectron2.data import DataOptions, coco_dicts, coco_evaluator
from e3va.detectron2.lean import prepare_model

from .own_files import BOXES, CASCADE, OwnData, names, nodes, square

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


def test_a_config_of_an_earlier_version_needs_no_options(own, tmp_path, model_overrides):
    """Its nodes lack them, and its keys of ``data`` too."""
    cfg = load_config(CASCADE, [*model_overrides, *own.given("train"), *own.given("val")])
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


def validated(own, model_overrides, json_file):
    given = [*own.given("train"), f"data.val.json={json_file}", f"data.val.images={own.images}"]
    return engine.prepare(load_config(CASCADE, [*model_overrides, *given]))


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_cannot_be_used_stop_before_the_training(own, model_overrides, split, tmp_path):
    Image.fromarray(np.zeros((48, 64), np.float32)).save(own.images / "1.tif")
    own.data["images"][0]["file_name"] = "1.tif"
    Image.new("RGB", (48, 64)).save(own.images / "2.png")
    own.save()
    good = OwnData(tmp_path / "good", 2)
    sides = {"train": good, "val": good, split: own}
    given = [text for side, data in sides.items() for text in data.given(side)]
    with pytest.raises(UserError, match=r"2 of 2 images .*1\.tif has float values"):
        engine.prepare(load_config(CASCADE, [*model_overrides, *given]))
    own.data["images"][0]["file_name"] = "1.png"
    own.save()
    with pytest.raises(UserError, match=r"1 of 2 images .*2\.png is 48×64, .* 64×48"):
        engine.prepare(load_config(CASCADE, [*model_overrides, *given]))
    assert not (tmp_path / "output").exists()


def test_only_one_process_of_a_machine_reads_the_headers(own, model_overrides, monkeypatch):
    Image.new("RGB", (48, 64)).save(own.images / "2.png")
    monkeypatch.setenv("LOCAL_RANK", "1")
    validated(own, model_overrides, own.json)


def test_validation_data_with_only_crowds_are_reported(own, model_overrides, tmp_path, caplog):
    validated(own, model_overrides, own.json)
    assert "no object" not in caplog.text
    for annotation in own.data["annotations"]:
        annotation["iscrowd"] = 1
    crowds = tmp_path / "crowds.json"
    crowds.write_text(json.dumps(own.data))
    validated(own, model_overrides, crowds)
    (line,) = (r.message for r in caplog.records if "no object" in r.message)
    assert str(crowds) in line and "data.use_crowds=true" in line


def test_images_without_objects_are_kept_on_request(own):
    own.data["annotations"].pop()
    own.save()
    assert names(coco_dicts(*own.paths, training=True)) == ["1.png"]
    kept = coco_dicts(*own.paths, training=True, options=DataOptions(keep_empty=True))
    assert names(kept) == ["1.png", "2.png"] and kept[1]["annotations"] == []


@pytest.mark.parametrize("memory", ["standard", "lean"])
@pytest.mark.parametrize("kind", [CASCADE, BOXES])
def test_a_batch_without_objects_trains_every_parameter(own, model_overrides, kind, memory):
    """Also with several processes, where a parameter without a gradient would stop them."""
    own.data["annotations"].pop()
    own.save()
    small = model_overrides if kind == CASCADE else NARROW
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


def test_training_data_that_cannot_be_read_stop_a_run_before_it_writes(
    own, model_overrides, tmp_path
):
    (own.images / "2.png").unlink()
    cfg = load_config(CASCADE, [*model_overrides, *own.given("train")])
    with pytest.raises(UserError, match=r"2\.png"):
        engine.prepare(cfg)
    cfg.data.train.images = ""
    with pytest.raises(UserError, match=r"data\.train\.images"):
        engine.prepare(cfg)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("key", ["init_checkpoint", "trunk"])
def test_weights_that_do_not_exist_stop_a_run_before_it_writes(own, model_overrides, tmp_path, key):
    given = [*model_overrides, *own.given("train"), f"train.{key}={tmp_path / 'gone.pth'}"]
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
