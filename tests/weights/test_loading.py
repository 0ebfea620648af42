"""The tensors of a file determine its Swin; one that fits is loaded, another one refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import e3va
from e3va import PRESETS, SwinTrunk, UserError
from e3va.weights.checkpoint import load_file
from e3va.weights.loading import (
    Loaded,
    check_trunk,
    find_trunk,
    load_trunk,
    read_geometry,
    trunk_state,
)
from e3va.weights.origin import fingerprint

NANO = PRESETS["swin_nano"]


def random_state(preset="swin_nano", prefix=""):
    state = SwinTrunk(preset).state_dict()
    return {prefix + name: torch.randn_like(value) for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up.trunk."])
def test_the_swin_is_found_under_any_prefix(prefix):
    state = {"heads.weight": torch.zeros(1), **random_state(prefix=prefix)}
    assert find_trunk(state) == prefix
    assert find_trunk({"heads.weight": torch.zeros(1)}) is None
    assert find_trunk({"patch_embed.proj.weight": torch.zeros(1)}) is None  # another network


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
    """It has a classifier, a final norm, derived buffers and a position embedding as tokens."""
    source = SwinTrunk(replace(NANO, absolute_position=True))
    state = dict(source.state_dict())
    grid = state["absolute_pos_embed"]
    state["absolute_pos_embed"] = grid.flatten(2).transpose(1, 2)
    state |= {"norm.weight": torch.ones(128), "head.bias": torch.ones(5)}
    state |= {"layers.0.blocks.1.attn_mask": torch.ones(4, 16, 16)}
    state |= {"layers.3.blocks.1.attn.relative_position_index": torch.ones(16, 16)}
    target = SwinTrunk(replace(NANO, absolute_position=True))
    loaded = load_trunk(target, state, "file.pth")
    assert loaded == Loaded(len(source.state_dict()), "official", ())
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
    refuse(SwinTrunk("swin_nano"), state, "swin_b_384 .*swin_nano .*preset to swin_b_384")


def test_depth_heads_mlp_and_position_embedding_must_agree_too():
    for change, match in (
        ({"depths": (2, 2, 4, 2)}, "depths 2-2-4-2.*depths 2-2-2-2"),
        ({"num_heads": (2, 2, 4, 8)}, "heads 2-2-4-8.*heads 1-2-4-8"),
        ({"mlp_ratio": 2.0}, "mlp_ratio 2.*trunk is swin_nano"),
        ({"absolute_position": True}, "position embedding.*trunk is swin_nano"),
        ({"window": 5, "mlp_ratio": 2.0}, "window 5, mlp_ratio 2.*window 4"),
    ):
        refuse(SwinTrunk(NANO), random_state(replace(NANO, **change)), match)
    refuse(SwinTrunk(replace(NANO, absolute_position=True)), random_state(), "swin_nano .* but")


def cubic_weights(size: int, new: int) -> torch.Tensor:
    """Return cubic convolution (Keys, a = −0.75) along one axis as a matrix [new, size]."""
    matrix = torch.zeros(new, size, dtype=torch.float64)
    for row in range(new):
        x = (row + 0.5) * size / new - 0.5
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            d, a = abs(x - tap), -0.75
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(tap, 0), size - 1)] += near if d <= 1 else far
    return matrix


@settings(max_examples=25, deadline=None)
@given(there=st.integers(2, 12), here=st.integers(2, 12), dtype=st.sampled_from(["f4", "f2"]))
def test_tables_of_another_window_are_interpolated(there, here, dtype):
    state = random_state(replace(NANO, window=there))
    if dtype == "f2":
        state = {name: value.half() for name, value in state.items()}
    trunk = SwinTrunk(replace(NANO, window=here))
    loaded = load_trunk(trunk, state, "file.pth")
    name = "layers.2.blocks.1.attn.relative_position_bias_table"
    found = trunk.state_dict()[name]
    if there == here:
        assert loaded.notes == () and torch.equal(found, state[name].float())
        return
    assert f"window {there}, were interpolated to the model's window {here}" in loaded.notes[0]
    assert len(loaded.notes) == 1 and "\n" not in loaded.notes[0]
    matrix = cubic_weights(2 * there - 1, 2 * here - 1)
    for head in range(4):
        grid = state[name][:, head].double().view(2 * there - 1, 2 * there - 1)
        expected = (matrix @ grid @ matrix.T).flatten()
        assert torch.allclose(found[:, head].double(), expected, atol=1e-5)
    assert trunk.origin.fingerprint == fingerprint(trunk.state_dict())


def test_the_grid_of_the_position_embedding_is_interpolated():
    state = random_state(replace(NANO, absolute_position=True, pretrain_size=32))
    trunk = SwinTrunk(replace(NANO, absolute_position=True))
    (note,) = load_trunk(trunk, state, "file.pth").notes
    assert "images of 32 pixels to the model's 64" in note
    matrix = cubic_weights(8, 16)
    expected = matrix @ state["absolute_pos_embed"].double() @ matrix.T
    assert torch.allclose(trunk.absolute_pos_embed.double(), expected, atol=1e-5)


def test_check_trunk_does_not_interpolate():
    """Weights that are loaded without :func:`load_trunk` must have the right window."""
    with pytest.raises(UserError, match="window 5.*window 4"):
        check_trunk(SwinTrunk(NANO), random_state(replace(NANO, window=5)), "file.pth")


def test_tables_and_grids_that_are_not_square_or_not_of_one_size():
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    for shape in ((7 * 5, 2), (8 * 8, 2), (49,)):
        refuse(SwinTrunk(NANO), random_state() | {name: torch.ones(shape)}, "square")
    refuse(SwinTrunk(NANO), random_state() | {name: torch.ones(81, 2)}, "windows of 4 and 5 tokens")
    absolute = SwinTrunk(replace(NANO, absolute_position=True))
    for shape in ((1, 15, 16), (1, 16, 3, 5)):
        state = random_state() | {"absolute_pos_embed": torch.ones(shape)}
        refuse(absolute, state, "square")
    state = random_state() | {"patch_embed.proj.weight": torch.ones(16, 3, 2, 4, 4)}
    refuse(SwinTrunk(NANO), state, "patch_embed.*color")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_and_trunks_of_other_types(dtype):
    state = {name: value.to(dtype) for name, value in random_state().items()}
    trunk, narrow = SwinTrunk(NANO), SwinTrunk(NANO).to(torch.bfloat16)
    for target in (trunk, narrow):
        load_trunk(target, state, "file.pth")
        own = target.state_dict()
        assert all(
            torch.equal(own[name], value.to(own[name].dtype)) for name, value in state.items()
        )
        assert {value.dtype for value in own.values()} == {target.patch_embed.proj.weight.dtype}
    # The fingerprint is that of the file's weights, whatever the type of the trunk.
    assert trunk.origin == narrow.origin
    assert trunk.origin.fingerprint == fingerprint(trunk.state_dict())
    integers = {name: value.to(torch.int8) for name, value in state.items()}
    refuse(SwinTrunk(NANO), integers, "int8")


def test_a_tensor_of_another_shape_is_refused():
    state = random_state() | {"layers.2.blocks.1.mlp.fc2.bias": torch.ones(5)}
    refuse(SwinTrunk(NANO), state, r"fc2.bias: \[5\] .*\[64\]")


def test_the_origin_names_the_file_and_not_its_folder():
    state, trunk = random_state(), SwinTrunk(NANO)
    for source, name in (
        ("/some/folder/swin.pth", "swin.pth"),
        ("folder/model.safetensors", "model.safetensors"),
        ("e3va://trunks/swin_t", "e3va://trunks/swin_t"),
        ("timm/swin_t.in1k of a friend", "timm/swin_t.in1k of a friend"),
    ):
        load_trunk(trunk, state, source)
        assert trunk.origin.source == name
    assert trunk.origin.fingerprint == fingerprint(state)
    demo = Path(e3va.__file__).parent / "assets/swin_mini.safetensors"
    trunk = SwinTrunk("swin_mini")
    load_trunk(trunk, load_file(demo), str(demo))
    assert trunk.origin.source == "demo"


def test_the_models_swin_is_chosen_among_several():
    prefixes = ["backbone.bottom_up.trunk.", "backbone.bottom_up.", "backbone.", ""]
    for start, expected in enumerate(prefixes):
        state = random_state(prefix="teacher.")
        for prefix in reversed(prefixes[start:]):
            state |= random_state(prefix=prefix)
        assert find_trunk(state) == expected
    one = random_state(prefix="ema.")
    copies = {name.replace("ema.", "net."): value.clone() for name, value in one.items()}
    assert find_trunk(one | copies) in ("ema.", "net.")
    copies["net.layers.0.blocks.0.norm1.bias"] += 1
    refuse(SwinTrunk(NANO), one | copies, r"2 Swins .* prefixes ema\., net\.")


def test_a_missing_or_incomplete_trunk_is_refused():
    refuse(SwinTrunk(NANO), {"head.weight": torch.zeros(1)}, "lacks the trunk")
    state = random_state()
    del state["layers.1.downsample.norm.bias"]
    refuse(SwinTrunk(NANO), state, "lacks 1 of .*layers.1.downsample.norm.bias")
    refuse(
        SwinTrunk(NANO),
        random_state() | {"layers.0.extra": torch.zeros(1)},
        r"1 are unknown.*layers\.0\.extra",
    )
    state = random_state()
    del state["layers.0.blocks.0.attn.relative_position_bias_table"]
    refuse(SwinTrunk(NANO), state, "its Swin lacks .*relative_position_bias_table")


def test_other_parts_of_a_file_are_ignored():
    state = {"backbone.norm2.weight": torch.zeros(64), "neck.weight": torch.zeros(2)}
    state |= random_state(prefix="backbone.")
    assert trunk_state(state, "backbone.").keys() == SwinTrunk("swin_nano").state_dict().keys()
