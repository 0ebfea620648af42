"""Weights in 8 bits: rounded once, under the official names, close to the original."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e3va import PRESETS, SwinTrunk
from e3va.swin.storage import Int8Linear, quantize, store_in_8_bits
from e3va.swin.trunk import TrunkNotFrozenError

NANO = PRESETS["swin_nano"]


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 60), exponent=st.integers(-30, 10))
def test_rounding_is_to_the_nearest_of_255_levels_and_happens_once(rows, columns, exponent):
    weight = torch.randn(rows, columns) * 10.0**exponent
    values, scale = quantize(weight)
    again, same = quantize(values * scale[:, None])
    assert torch.equal(values, again) and torch.equal(scale, same)
    step = weight.abs().amax(dim=1) / 127
    assert ((values * scale[:, None] - weight).abs() <= 0.5001 * step[:, None]).all()
    assert values.dtype is torch.int8 and values.abs().max() == 127


def test_a_channel_of_zeros_stays_zero():
    values, scale = quantize(torch.zeros(2, 3))
    assert not (values * scale[:, None]).any() and torch.isfinite(scale).all()


def test_state_is_that_of_a_linear_layer():
    linear = nn.Linear(6, 4)
    stored = Int8Linear(linear)
    state = stored.state_dict()
    assert {k: v.shape for k, v in state.items()} == {"weight": (4, 6), "bias": (4,)}
    other = Int8Linear(nn.Linear(6, 4))
    other.load_state_dict(state)
    assert torch.equal(other.weight, stored.weight) and torch.equal(other.bias, linear.bias)
    x = torch.randn(5, 6)
    torch.testing.assert_close(other(x), x @ state["weight"].T + linear.bias)
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        other.load_state_dict({"bias": state["bias"]})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        other.load_state_dict({**state, "weight": torch.zeros(4, 7)})
    assert torch.equal(other.weight, stored.weight)


def test_a_trunk_in_8_bits_keeps_its_names_and_computes_nearly_the_same():
    trunk = SwinTrunk(NANO)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    images = torch.rand(1, 3, 50, 70)
    expected = list(trunk.stages(images))
    store_in_8_bits(trunk)
    values = trunk.layers[0].blocks[0].attn.qkv.values
    store_in_8_bits(trunk)  # a second call changes nothing
    assert trunk.layers[0].blocks[0].attn.qkv.values is values
    after = trunk.state_dict()
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    wide = (".qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")
    assert changed == {k for k in before if ".blocks." in k and k.endswith(wide)}
    for stage, plain in zip(trunk.stages(images), expected, strict=True):
        assert 0 < (stage.out - plain.out).norm() < 0.01 * plain.out.norm()
    wide = SwinTrunk(NANO)
    wide.load_state_dict(after)
    for stage, same in zip(trunk.stages(images), wide.stages(images), strict=True):
        torch.testing.assert_close(stage.out, same.out)
    reloaded = SwinTrunk(NANO)
    store_in_8_bits(reloaded)
    reloaded.load_state_dict(after)
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, after[name])


def test_parameters_are_counted_and_stay_frozen():
    trunk = SwinTrunk(NANO)
    count = sum(p.numel() for p in trunk.parameters())
    size = sum(p.numel() * p.element_size() for p in trunk.parameters())
    store_in_8_bits(trunk)
    trunk.check_frozen()
    assert sum(p.numel() for p in trunk.parameters()) == count
    assert sum(p.numel() * p.element_size() for p in trunk.parameters()) < 0.5 * size
    trunk.layers[0].blocks[0].attn.qkv.bias.requires_grad_(True)
    with pytest.raises(TrunkNotFrozenError):
        trunk.check_frozen()
