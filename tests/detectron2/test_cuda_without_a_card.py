"""Detectron2's models on a CUDA device without a card, see tests/test_cuda_without_a_card.py."""

import pytest
import torch
from detectron2.config import instantiate

from e3va.detectron2 import load_config
from e3va.detectron2.lean import prepare_model

from ..fake_cuda import fake_cuda, moved_to_fake_cuda, without_fingerprint

CONFIGS = [
    "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py",
    "COCO/mask_rcnn_e3va_swin_t_1x.py",
    "ADE20K/semantic_fpn_e3va_swin_t_80k.py",
]


@pytest.mark.parametrize("memory", ["standard", "lean", "plain"])
@pytest.mark.parametrize("config", CONFIGS)
def test_models_stay_on_the_device(monkeypatch, config, memory):
    cfg = load_config(config).model
    cfg.backbone.bottom_up.preset = "swin_nano"
    cfg.backbone.bottom_up.memory = memory
    model = without_fingerprint(instantiate(cfg)).train()
    with fake_cuda(monkeypatch, torch.bfloat16):
        model = moved_to_fake_cuda(model)
        prepare_model(model, mixed=True)
        with torch.autocast("cuda", torch.bfloat16):
            levels = model.backbone(torch.rand(2, 3, 64, 96, device="cuda"))
            outputs = list(levels.values())
            if hasattr(model, "proposal_generator"):
                generator = model.proposal_generator
                scores, deltas = generator.rpn_head([levels[n] for n in generator.in_features])
                outputs += [*scores, *deltas]
            else:
                labels = torch.zeros(2, 64, 96, dtype=torch.long, device="cuda")
                _, losses = model.sem_seg_head(levels, labels)
                outputs += list(losses.values())
    assert outputs and {out.device.type for out in outputs} == {"cuda"}
