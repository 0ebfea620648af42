"""Side networks, which read all taps of a stage, and adapters of a frozen matrix."""

import copy
import json

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, UserError, highway_config
from e3va.adapter_files.files import load_adapter, save_adapter
from e3va.highway.config import read_highway
from e3va.highway.highway import Highway
from e3va.highway.registry import adapter_kinds
from e3va.swin.windows import shift_mask

HEIGHT, WIDTH = 5, 7
SIDE = ("ladder", "dtl")
IMAGES = torch.rand(2, 3, 41, 30, generator=torch.Generator().manual_seed(0))


def side_network(kind: str, **options) -> nn.Module:
    torch.manual_seed(0)
    module = adapter_kinds()[kind].module(16, tap_count=3, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def ladder(m, taps, h):
    mask = shift_mask(HEIGHT, WIDTH, 3, 1, taps[0].device)
    mixes = [(0, 1)] + [(torch.sigmoid(10 * a), 1 - torch.sigmoid(10 * a)) for a in m.gates]
    y = 0
    for (before, own), down, block, z in zip(mixes, m.down, m.blocks, taps, strict=True):
        y = before * y + own * ((z + h) @ down.weight.t() + down.bias)
        y = block(y.unflatten(1, (HEIGHT, WIDTH)), mask)["after_mlp"].flatten(1, 2)
    centred = y - y.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return h + (normed * m.norm.weight + m.norm.bias) @ m.up.weight.t() + m.up.bias


def dtl(m, taps, h):
    layers = zip(m.down, m.up, taps, strict=True)
    y = sum(z @ (up.weight @ down.weight).t() for down, up, z in layers)
    y = (y * torch.sigmoid(2 * y)).unflatten(1, (HEIGHT, WIDTH))
    out = torch.zeros_like(y)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            for i in range(max(0, row - 1), min(HEIGHT, row + 2)):
                for j in range(max(0, column - 1), min(WIDTH, column + 2)):
                    factor = m.conv.weight[:, 0, i - row + 1, j - column + 1]
                    out[:, row, column] += factor * y[:, i, j]
    return h + out.flatten(1, 2)


@pytest.mark.parametrize(
    ("kind", "options", "equation"),
    [
        ("ladder", {"reduction": 4, "window": 3}, ladder),
        ("dtl", {"rank": 3, "beta": 2.0, "kernel": 3}, dtl),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_side_network_is_its_equation(kind, options, equation, first):
    module = side_network(kind, **options)
    *taps, h = torch.randn(4, 2, HEIGHT * WIDTH, 16, dtype=torch.float64)
    ours = module(taps, None if first else h, HEIGHT, WIDTH)
    theirs = equation(module, taps, torch.zeros_like(h) if first else h)
    torch.testing.assert_close(ours, theirs)
    parameters = list(module.parameters())
    pairs = zip(
        torch.autograd.grad(ours.cos().sum(), parameters),
        torch.autograd.grad(theirs.cos().sum(), parameters),
        strict=True,
    )
    for one, two in pairs:
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", SIDE)
@pytest.mark.parametrize("taps", ["block", "residual", "sublayer"])
def test_it_starts_as_the_plain_trunk_and_all_of_it_learns(kind, taps):
    torch.manual_seed(0)
    backbone = E3VABackbone("swin_nano", {"adapter": kind, "taps": taps})
    plain = E3VABackbone("swin_nano", "frozen", trunk=backbone.trunk)
    for one, two in zip(backbone(IMAGES).values(), plain(IMAGES).values(), strict=True):
        torch.testing.assert_close(one, two)
    for parameter in backbone.highway.parameters():
        nn.init.normal_(parameter, std=0.1)
    sum(out.cos().sum() for out in backbone(IMAGES).values()).backward()
    backbone.trunk.check_frozen()
    for name, parameter in backbone.highway.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("kind", [*SIDE, "smoa"])
def test_adapter_files_and_tensors_give_the_config_back(kind, tmp_path):
    backbone = E3VABackbone("swin_nano", {"adapter": kind})
    described = backbone.config.highway
    assert highway_config(**json.loads(json.dumps(described.to_dict()))) == described
    assert read_highway(backbone.highway.state_dict(), 16) == described
    for parameter in backbone.highway.parameters():
        nn.init.normal_(parameter)
    outputs = backbone(IMAGES)
    save_adapter(backbone, tmp_path / "adapter")
    other = E3VABackbone("swin_nano", {"adapter": kind}, trunk=backbone.trunk)
    other(IMAGES)
    load_adapter(other, tmp_path / "adapter")
    for one, two in zip(outputs.values(), other(IMAGES).values(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(UserError) as caught:
        load_adapter(E3VABackbone("swin_nano", {"adapter": "mona"}), tmp_path / "adapter")
    assert f"'{kind}'" in caught.value.line or kind in caught.value.line


@pytest.mark.parametrize("kind", SIDE)
def test_settings_of_single_adapters_have_no_effect(kind):
    plain = highway_config(adapter=kind)
    assert highway_config(adapter=kind, form="parallel", shared=True) == plain
    assert plain.without_effect == ("form", "shared")
    assert highway_config(adapter=kind, taps="sublayer") != plain


# --- adapters of a frozen matrix


def smoa_backbone(**settings) -> E3VABackbone:
    torch.manual_seed(0)
    backbone = E3VABackbone("swin_nano", {"adapter": "smoa"}, **settings)
    for parameter in backbone.highway.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone


def test_a_copy_reads_the_matrices_of_its_own_trunk():
    backbone = smoa_backbone()
    backbone(IMAGES)
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for layer in twin.trunk.layers:
            for block in layer.blocks:
                block.attn.proj.weight.zero_()
    state = {name: p for name, p in twin.named_parameters() if ".lora_A." in name}
    sum(out.cos().sum() for out in twin(IMAGES).values()).backward()
    assert all(not p.grad.any() for p in state.values())
    sum(out.cos().sum() for out in backbone(IMAGES).values()).backward()
    assert all(p.grad.any() for n, p in backbone.named_parameters() if n in state)
    assert not any("frozen" in name for name in backbone.state_dict())


def test_the_order_of_a_file_holds_and_a_fresh_file_has_none():
    backbone, other = smoa_backbone(), smoa_backbone()
    fresh = copy.deepcopy(backbone.state_dict())
    expected = backbone(IMAGES)["p3"]
    state = backbone.state_dict()
    state["highway.stages.3.mlp.1.rows"] = state["highway.stages.3.mlp.1.rows"].flip(0)
    other.load_state_dict(state)
    assert not torch.allclose(other(IMAGES)["p3"], expected)
    other.load_state_dict(fresh)
    assert torch.equal(other(IMAGES)["p3"], expected)


@pytest.mark.parametrize("memory", ["standard", "lean"])
def test_matrices_may_be_stored_in_another_form(memory):
    backbone = smoa_backbone(memory=memory)
    reference = backbone(IMAGES)["p3"]
    backbone.prepare(mixed=False)
    close = {"standard": 1e-6, "lean": 0.05}[memory]
    torch.testing.assert_close(backbone(IMAGES)["p3"], reference, rtol=close, atol=close)


def test_a_highway_without_the_trunks_blocks_is_refused():
    with pytest.raises(UserError) as caught:
        Highway((16, 32), (2, 2), {"adapter": "smoa"}, out_stages=(0, 1))
    assert "'smoa'" in caught.value.line and "blocks" in caught.value.line
