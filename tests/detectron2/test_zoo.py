"""Addresses of the model zoo wherever Detectron2 or this project takes weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.utils.file_io import PathManager
from torch import nn

from e3va import model_zoo
from e3va.adapter_files.files import read_adapter, read_config, save_adapter
from e3va.detectron2 import LazyPredictor, add_e3va_config, describe, engine, load_config
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.detectron2.config import CONFIG_ROOT
from e3va.model_zoo.publish import publish
from e3va.weights.checkpoint import load_file

CUSTOM = "custom/cascade_mask_rcnn_e3va_swin_t.py"
COCO = "COCO/cascade_mask_rcnn_e3va_swin_t_1x"
# Keys that differ in the YAML config, and sizes of a small model.
SMALL = [
    "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    "dataloader.test.mapper.augmentations.0.max_size=150",
    "model.proposal_generator.post_nms_topk=[60,60]",
    "model.roi_heads.mask_head.conv_dims=[16,16,16,16,16]",
    "train.device=cpu",
]
SMALL += [
    f"model.roi_heads.{key}"
    for k in range(3)
    for key in (
        f"box_heads.{k}.fc_dims=[32,32]",
        f"box_predictors.{k}.input_shape.channels=32",
        f"box_predictors.{k}.test_score_thresh=0.02",
    )
]


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty zoo's folder, which is the mirror."""
    (tmp_path / "zoo").mkdir()
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "zoo"


def run(overrides, *more, flags=()):
    """The training script's main, in this process."""
    args = ["--config-file", CUSTOM, *flags, *overrides, *more]
    engine.run(default_argument_parser().parse_args(args))


@pytest.fixture
def published(zoo, small_overrides, pretrained, tmp_path):
    """The published adapter ``shapes`` and its trunk; no other copy of them is left."""
    run(small_overrides, "train.max_iter=2", f"train.init_checkpoint={pretrained}")
    output = tmp_path / "output"
    publish(output, "shapes", zoo, trunk=str(pretrained))
    pretrained.unlink()
    return output.rename(tmp_path / "published")


def results(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


@pytest.mark.parametrize(
    "address", ["e3va://shapes", "e3va://adapters/shapes", "e3va://adapters/shapes/model_final.pth"]
)
def test_eval_only_takes_an_address(published, small_overrides, tmp_path, address):
    assert published.is_dir() and not (tmp_path / "output").exists()
    run(small_overrides, f"train.init_checkpoint={address}", flags=["--eval-only"])
    assert results(published) and results(tmp_path / "output") == results(published)


@pytest.mark.slow
def test_training_starts_from_addresses(published, small_overrides, tmp_path):
    """From an adapter, and from a trunk; the new adapter contains the address of the trunk."""
    assert "swin" in model_zoo.list_trunks()
    for number, start in enumerate(("e3va://shapes", "e3va://swin")):
        output = tmp_path / str(number)
        given = (f"train.init_checkpoint={start}", f"train.output_dir={output}")
        run(small_overrides, "train.max_iter=1", *given)
        description = read_config(output)
        assert description.trunk.fingerprint == read_config(published).trunk.fingerprint
    assert description.trunk.source == "e3va://swin"
    (tmp_path / "1").rename(tmp_path / "moved")
    cfg = load_config(CUSTOM, small_overrides)
    engine.resolve_classes(cfg)
    model = instantiate(cfg.model)
    HighwayCheckpointer(model).load(str(tmp_path / "moved"))
    expected = torch.load(tmp_path / "moved" / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, expected[k]) for k, value in model.state_dict().items())


def test_detectron2s_path_manager_knows_the_addresses(published):
    address = "e3va://adapters/shapes/adapter_model.safetensors"
    assert PathManager.isfile(address)
    with PathManager.open(address, "rb") as file:
        assert file.read() == (published / "adapter_model.safetensors").read_bytes()
    state, _ = read_adapter(published)
    whole = load_file(PathManager.get_local_path("e3va://adapters/shapes/model_final.pth"))
    assert all(torch.equal(whole["model"][k], value) for k, value in state.items())


def coco_adapter(folder, pretrained):
    """An adapter of the small form of a config that also exists as YAML."""
    cfg = load_config(f"{COCO}.py", [*SMALL, "model.backbone.bottom_up.preset=swin_nano"])
    cfg.model.roi_heads.num_classes = 4
    model = instantiate(cfg.model)
    HighwayCheckpointer(model).load(str(pretrained))
    for name, parameter in model.named_parameters():
        if ".up." in name or "bbox_pred" in name:
            nn.init.normal_(parameter, std=0.05)
    about = {**describe.describe_config(cfg), "classes": ("a", "b", "c", "d")}
    save_adapter(model, folder, **about)


def default_predictor(weights):
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(str(CONFIG_ROOT / "COCO/cascade_mask_rcnn_e3va_swin_t.yaml"))
    cfg.MODEL.E3VA.PRESET = "swin_nano"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.02
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    cfg.MODEL.WEIGHTS = weights
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 150
    return DefaultPredictor(cfg)


def test_both_predictors_take_addresses_and_predict_the_same(zoo, pretrained, tmp_path):
    coco_adapter(tmp_path / "adapter", pretrained)
    publish(tmp_path / "adapter", "four", zoo, trunk=str(pretrained))
    Path(pretrained).unlink()
    image = np.random.default_rng(0).integers(0, 255, (117, 155, 3), dtype=np.uint8)
    theirs = default_predictor("e3va://adapters/four/model_final.pth")(image)["instances"]
    lazy = LazyPredictor(weights="e3va://four", overrides=SMALL)
    ours = lazy(image)["instances"]
    assert len(ours) > 5 and lazy.metadata.thing_classes == ["a", "b", "c", "d"]
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
    torch.testing.assert_close(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_masks, theirs.pred_masks)
