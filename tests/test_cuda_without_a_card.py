"""On a CUDA device all tensors are on the device and have the right types; no card is needed.

These are forward passes on tensors without values, see fake_cuda.py. An operator that
needs a value on the host would raise: in trunk, highway and neck the host never waits for the card.
"""

import pytest
import torch

from e3va import E3VABackbone
from e3va.highway.config import RECIPES
from e3va.highway.registry import adapter_kinds
from e3va.swin.presets import get_preset
from e3va.torchvision.lean import prepare_model
from e3va.torchvision.models import MODELS, ModelConfig, build_model

from .fake_cuda import fake_cuda, moved_to_fake_cuda, without_fingerprint

MEMORIES = ("standard", "lean", "plain")
# Type of autocast (None for no autocast), and the card's fast half-precision type.
TYPES = [
    (None, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float16, None),
]


def autocast(dtype):
    return torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None)


def run(monkeypatch, backbone, dtype, half) -> list[torch.Tensor]:
    backbone = without_fingerprint(backbone).train()
    with fake_cuda(monkeypatch, half):
        backbone = moved_to_fake_cuda(backbone)
        backbone.prepare(dtype is not None)
        with autocast(dtype):
            return list(backbone(torch.rand(2, 3, 70, 90, device="cuda")).values())


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("dtype", "half"), TYPES)
def test_every_mode_and_recipe_stays_on_the_device(monkeypatch, memory, recipe, dtype, half):
    backbone = E3VABackbone("swin_nano", recipe, memory=memory)
    outputs = run(monkeypatch, backbone, dtype, half)
    assert [(o.device.type, o.dtype, o.requires_grad) for o in outputs] == [
        ("cuda", torch.float32, True)
    ] * 4
    stored = {p.dtype for p in backbone.trunk.parameters()}
    if memory == "plain" or recipe == "full" or dtype is None:
        assert stored <= {torch.float32, torch.int8}
    else:  # but for the patch mergings, which the highway uses too
        assert stored - {torch.int8} == {torch.float32, half or torch.float16}


PLACES = [
    (name, placement)
    for name, kind in adapter_kinds().items()
    for placement in ("highway", "inside")
    if placement == "highway" or kind.inside
]


@pytest.mark.parametrize(("kind", "placement"), PLACES)
def test_every_adapter_kind_stays_on_the_device(monkeypatch, kind, placement):
    options = {"rank": 8} if "rank" in adapter_kinds()[kind].defaults else {}
    backbone = E3VABackbone("swin_nano", {"adapter": kind, "placement": placement, **options})
    if kind == "smoa":
        backbone(torch.rand(1, 3, 32, 32))  # orders the matrices
    outputs = run(monkeypatch, backbone, torch.float16, torch.float16)
    assert {o.device.type for o in outputs} == {"cuda"}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("model", MODELS)
def test_torchvision_models_stay_on_the_device(monkeypatch, model, memory):
    config = ModelConfig(
        model=model,
        classes=("one", "two"),
        preset=get_preset("swin_nano"),
        trunk="random",
        heads="light",
        memory=memory,
    )
    built = without_fingerprint(build_model(config)).train()
    with fake_cuda(monkeypatch, torch.float16):
        built = moved_to_fake_cuda(built)
        prepare_model(built, mixed=True)
        with autocast(torch.float16):
            levels = built.backbone(torch.rand(2, 3, 64, 96, device="cuda"))
            if model == "semantic_fpn":
                labels = torch.zeros(2, 64, 96, dtype=torch.long, device="cuda")
                levels["loss"] = built._loss(built.sem_seg_head(levels), labels)
            elif hasattr(built, "rpn"):
                scores, deltas = built.rpn.head(list(levels.values()))
                levels |= dict(enumerate((*scores, *deltas)))
    assert {level.device.type for level in levels.values()} == {"cuda"}
