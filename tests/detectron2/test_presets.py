"""The preset "auto" takes a trunk's size from its weights."""

from dataclasses import replace

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from e3va import SwinPreset, SwinTrunk, UserError
from e3va.detectron2 import LazyPredictor, load_config
from e3va.detectron2.presets import resolve_preset
from e3va.swin.presets import PRESETS

NAMELESS = SwinPreset(12, (1, 1, 2, 1), (1, 2, 3, 4), window=3)
AUTO = "model.backbone.bottom_up.preset=auto"


def weights(folder, preset):
    file = folder / "swin.pth"
    torch.save({"model": SwinTrunk(preset).state_dict()}, file)
    return file


@pytest.mark.parametrize("config", ["cascade_mask_rcnn", "retinanet"])
def test_a_geometry_without_a_name_is_read_off_the_weights(tmp_path, config):
    file = weights(tmp_path, NAMELESS)
    overrides = [AUTO, f"train.init_checkpoint={file}"]
    cfg = load_config(f"custom/{config}_e3va_swin_t.py", overrides)
    resolve_preset(cfg)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for found in (cfg, load_config(tmp_path / "config.yaml")):
        backbone = instantiate(found.model.backbone)
        preset = backbone.bottom_up.trunk.preset
        assert replace(preset, pretrain_size=224) == NAMELESS
        assert backbone(torch.zeros(1, 3, 64, 64))["p5"].shape == (1, 256, 2, 2)


def test_a_known_geometry_gets_its_name(tmp_path):
    file = weights(tmp_path, PRESETS["swin_nano"])
    cfg = load_config("custom/semantic_fpn_e3va_swin_t.py", [AUTO, f"train.trunk={file}"])
    resolve_preset(cfg)
    assert cfg.model.backbone.bottom_up.preset == "swin_nano"


def test_auto_without_weights_is_refused():
    cfg = load_config("custom/semantic_fpn_e3va_swin_t.py", [AUTO, "train.init_checkpoint="])
    with pytest.raises(UserError, match=r"train\.init_checkpoint"):
        resolve_preset(cfg)


def test_a_predictor_takes_the_size_of_its_weights(tmp_path):
    overrides = [AUTO, "train.device=cpu", "data.classes=[sky,ground]"]
    cfg = load_config("custom/semantic_fpn_e3va_swin_t.py", overrides)
    resolve_preset(cfg, str(weights(tmp_path, NAMELESS)))
    torch.save({"model": instantiate(cfg.model).state_dict()}, tmp_path / "model.pth")
    config = load_config("custom/semantic_fpn_e3va_swin_t.py", overrides)
    predictor = LazyPredictor(config, tmp_path / "model.pth", device="cpu")
    assert predictor.model.backbone.bottom_up.trunk.preset.depths == NAMELESS.depths
