"""What a file holds is read off its tensors; what fits is loaded, the rest refused."""

from dataclasses import replace

import pytest
import torch

from e3va import PRESETS, SwinTrunk, UserError
from e3va.weights import find_trunk, load_trunk, read_geometry, trunk_state

NANO = PRESETS["swin_nano"]


def random_state(preset="swin_nano", prefix=""):
    state = SwinTrunk(preset).state_dict()
    return {prefix + name: torch.randn_like(value) for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up.trunk."])
def test_the_swin_is_found_under_any_prefix(prefix):
    state = {"heads.weight": torch.zeros(1), **random_state(prefix=prefix)}
    assert find_trunk(state) == prefix
    assert find_trunk({"heads.weight": torch.zeros(1)}) is None
    assert find_trunk({"patch_embed.proj.weight": torch.zeros(1)}) is None  # of another network


@pytest.mark.parametrize("name", PRESETS)
def test_geometry_is_read_off_the_tensors(name):
    with torch.device("meta"):
        state = SwinTrunk(name).state_dict()
    assert read_geometry(state, "file") == replace(PRESETS[name], pretrain_size=0)
    position = replace(PRESETS[name], absolute_position=True)
    with torch.device("meta"):
        state = SwinTrunk(position).state_dict()
    assert read_geometry(state, "file") == position


def test_the_official_classification_layout_loads():
    """With classifier, final norm, derived buffers, and the position embedding as tokens."""
    source = SwinTrunk(replace(NANO, absolute_position=True))
    state = dict(source.state_dict())
    grid = state["absolute_pos_embed"]
    state["absolute_pos_embed"] = grid.flatten(2).transpose(1, 2)
    state |= {"norm.weight": torch.ones(128), "head.bias": torch.ones(5)}
    state |= {"layers.0.blocks.1.attn_mask": torch.ones(4, 16, 16)}
    state |= {"layers.3.blocks.1.attn.relative_position_index": torch.ones(16, 16)}
    target = SwinTrunk(replace(NANO, absolute_position=True))
    count = load_trunk(target, state, "file.pth")
    assert count == len(source.state_dict())
    images = torch.rand(1, 3, 50, 60)
    for one, other in zip(source.stages(images), target.stages(images), strict=True):
        assert torch.equal(one.out, other.out)


def refuse(trunk, state, match):
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    with pytest.raises(UserError, match=match) as caught:
        load_trunk(trunk, state, "file.pth")
    assert str(caught.value).startswith("file.pth") and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in trunk.state_dict().items())


def test_another_size_names_both_and_the_preset_to_use():
    with torch.device("meta"):
        state = SwinTrunk("swin_b_384").state_dict()
    refuse(SwinTrunk("swin_nano"), state, 'swin_b_384 .*swin_nano .*use preset="swin_b_384"')


def test_another_window_or_position_embedding_is_another_size():
    refuse(SwinTrunk(NANO), random_state(replace(NANO, window=5)), "window 5.*window 4")
    absolute = random_state(replace(NANO, absolute_position=True))
    refuse(SwinTrunk(NANO), absolute, "absolute position embedding")
    smaller = random_state(replace(NANO, absolute_position=True, pretrain_size=32))
    refuse(SwinTrunk(replace(NANO, absolute_position=True)), smaller, "holds the Swin")


def test_no_trunk_and_half_a_trunk():
    refuse(SwinTrunk(NANO), {"head.weight": torch.zeros(1)}, "lacks the trunk")
    state = random_state()
    del state["layers.1.downsample.norm.bias"]
    refuse(SwinTrunk(NANO), state, "lacks 1 of the trunk's .*layers.1.downsample.norm.bias")
    refuse(SwinTrunk(NANO), random_state() | {"layers.0.extra": torch.zeros(1)}, "unknown 1")
    state = random_state()
    del state["layers.0.blocks.0.attn.relative_position_bias_table"]
    refuse(SwinTrunk(NANO), state, "its Swin lacks .*relative_position_bias_table")


def test_other_parts_of_a_file_are_left_aside():
    state = {"backbone.norm2.weight": torch.zeros(64), "neck.weight": torch.zeros(2)}
    state |= random_state(prefix="backbone.")
    assert trunk_state(state, "backbone.").keys() == SwinTrunk("swin_nano").state_dict().keys()
