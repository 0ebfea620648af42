"""Configs and models of the zoo by name, for Detectron2."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.utils.file_io import PathManager

from e3va import E3VABackbone, UserError
from e3va.adapter_files.files import save_adapter
from e3va.detectron2.model_zoo import get, get_config
from e3va.model_zoo import get_checkpoint_url, get_config_file, local_path, models, register
from e3va.model_zoo.publish import publish
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.loading import load_trunk

CONFIG = "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"


def test_a_config_without_an_adapter_is_an_error():
    with pytest.raises(UserError, match="COCO/cascade_mask_rcnn_e3va_swin_l_3x.py"):
        get_config("COCO/cascade_mask_rcnn_e3va_swin_l_3x.py", trained=True)


def test_names_that_are_no_model():
    with pytest.raises(UserError, match="'swin_mini'"):
        get("swin_mini", trained=True)
    with pytest.raises(UserError, match="'nothing'"):
        get("nothing")
    with pytest.raises(UserError, match="COCO/nothing.py"):
        get("COCO/nothing.py")


def trunk_file(folder: Path, name: str = "nano_trunk.pth") -> Path:
    folder.mkdir(exist_ok=True)
    torch.save({"model": E3VABackbone("swin_nano").trunk.state_dict()}, folder / name)
    return folder / name


def finish(trained: torch.nn.Module, folder: Path, **about) -> Path:
    """Give a model a trunk and trained weights, and write its adapter."""
    trunk = trunk_file(folder)
    own = next(m for m in trained.modules() if isinstance(m, E3VABackbone)).trunk
    load_trunk(own, model_state(load_file(trunk), "trunk"), trunk.name)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    save_adapter(trained, folder / "output", **about)
    return trunk


def same_weights(one, other) -> bool:
    want = other.state_dict()
    return all(torch.equal(value.cpu(), want[key].cpu()) for key, value in one.state_dict().items())


CUSTOM = "custom/cascade_mask_rcnn_e3va_swin_t.py"
SMALL_CONFIG = """\
from e3va.detectron2 import load_config

_cfg = load_config({config!r}, {overrides})
model, train, data = _cfg.model, _cfg.train, _cfg.data
"""
SMALL = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.out_channels=16",
    "model.proposal_generator.head.in_channels=16",
    "model.roi_heads.num_classes=3",
    "model.roi_heads.mask_head.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "train.device=cpu",
    *(
        f"model.roi_heads.{key}"
        for stage in range(3)
        for key in (
            f"box_heads.{stage}.input_shape.channels=16",
            f"box_heads.{stage}.fc_dims=[32]",
            f"box_predictors.{stage}.input_shape.channels=32",
        )
    ),
]


@pytest.fixture
def small(tmp_path, monkeypatch) -> str:
    """Name of a config of the project, small enough to build in a test."""
    folder = tmp_path / "configs"
    (folder / "custom").mkdir(parents=True)
    (folder / "custom" / "small.py").write_text(
        SMALL_CONFIG.format(config=get_config_file(CUSTOM), overrides=SMALL)
    )
    monkeypatch.setattr(models, "CONFIG_ROOT", folder)
    return "custom/small.py"


@pytest.fixture
def published(small, tmp_path, monkeypatch):
    """A trained model of the small config with other settings than the config's, published."""
    cfg = get_config(small)
    cfg.model.backbone.bottom_up.highway.rank = 4  # as an override of the training
    cfg.model.roi_heads.num_classes = 2
    model = instantiate(cfg.model)
    about = {"framework": "detectron2", "model": {"config": small}, "classes": ("red", "blue")}
    trunk = finish(model, tmp_path, **about)
    publish(tmp_path / "output", "small_things", tmp_path / "zoo", trunk=str(trunk))
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    return model


def test_configs_of_detectron2(small, published):
    address = "e3va://adapters/small_things/model_final.pth"
    assert get_checkpoint_url(small) == address
    plain, trained = get_config(small), get_config(small, trained=True)
    assert plain.train.init_checkpoint == "" and trained.train.init_checkpoint == address
    assert list(trained.data.classes) == ["red", "blue"]
    assert (plain.model.roi_heads.num_classes, trained.model.roi_heads.num_classes) == (3, 2)
    assert trained.model.backbone.bottom_up.highway.rank == 4


def test_models_of_detectron2(small, published):
    for name in (small, "small_things"):
        assert same_weights(get(name, trained=True, device="cpu"), published)
    fresh = get(small, device="cpu")
    assert fresh.training and not same_weights(fresh.backbone, published.backbone)


def test_the_stock_checkpointer_reads_the_address(small, published):
    register(PathManager)
    model = instantiate(get_config(small, trained=True).model)
    DetectionCheckpointer(model).load(get_checkpoint_url(small))
    assert same_weights(model, published)
    assert local_path(get_checkpoint_url(small)).name == "model_final.pth"


def test_the_stock_checkpointer_reads_the_packaged_trunk(tmp_path, monkeypatch):
    """Its matrices have 8 bits, which Detectron2 cannot read by itself."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    register(PathManager)
    model = torch.nn.ModuleDict({"backbone": E3VABackbone("swin_mini")})
    DetectionCheckpointer(model).load("e3va://swin_mini?matching_heuristics=True")
    expected = load_file(local_path("e3va://swin_mini"))
    state = model["backbone"].trunk.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value.float()) for name, value in expected.items())


def test_two_adapters_of_one_config(small, published, tmp_path):
    publish(tmp_path / "output", "second", tmp_path / "zoo")
    with pytest.raises(UserError, match="small_things, second"):
        get_checkpoint_url(small)
    assert same_weights(get("second", trained=True, device="cpu"), published)


def test_an_adapter_of_other_heads_does_not_fit(small, published, tmp_path):
    """Heads that were overridden: nothing of them is in the adapter's description."""
    config = tmp_path / "configs" / small
    config.write_text(config.read_text().replace("fc_dims=[32]", "fc_dims=[48]"))
    config.write_text(
        config.read_text().replace("input_shape.channels=32", "input_shape.channels=48")
    )
    with pytest.raises(UserError, match="e3va://small_things .*fit"):
        get(small, trained=True, device="cpu")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("COCO/cascade_mask_rcnn_e3va_swin_t.yaml", "ROI_HEADS"),
        ("VOC/retinanet_e3va_swin_t.yaml", "RETINANET"),
        ("ADE20K/semantic_fpn_e3va_swin_t.yaml", "SEM_SEG_HEAD"),
    ],
)
def test_a_yaml_config(name, heads, published, small, tmp_path, monkeypatch):
    twin = tmp_path / "configs" / "custom" / "small.yaml"
    monkeypatch.undo()
    cfg = get_config(name)
    assert cfg.MODEL.WEIGHTS == "" and cfg.MODEL.E3VA.PRESET == "swin_t"
    twin.write_text(Path(get_config_file(name)).read_text())
    monkeypatch.setattr(models, "CONFIG_ROOT", tmp_path / "configs")
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cfg = get_config("custom/small.yaml", trained=True)
    assert cfg.MODEL.WEIGHTS == "e3va://adapters/small_things/model_final.pth"
    assert (cfg.MODEL.E3VA.PRESET, cfg.MODEL.E3VA.HIGHWAY.RANK) == ("swin_nano", 4)
    assert cfg.MODEL[heads].NUM_CLASSES == 2
