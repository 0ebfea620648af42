"""The trunk is a Swin, runs outside autograd, and yields the documented taps.

The reference implementations differ from one another on maps that windows do not tile: Detectron2
(as the official detection code) pads, then shifts, always; torchvision drops the shift along an
axis that one window covers; timm shifts, then pads. The trunk follows Detectron2 everywhere, so it
is compared with the others where they compute the same.
"""

import itertools
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e3va import PRESETS, Highway, SwinPreset, SwinTrunk, TrunkNotFrozenError, UserError
from e3va.swin.modules import SwinBlock
from e3va.swin.windows import shift_mask

NANO = PRESETS["swin_nano"]
WIDE = SwinPreset(24, (2, 2, 2, 2), (1, 2, 4, 8), window=7)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Add noise to every parameter, so that no bias, norm or table is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        noise = torch.randn(parameter.shape, generator=generator) * 0.15
        parameter.data.copy_(centre + noise)
    return module


def difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def outputs(trunk: SwinTrunk, images: torch.Tensor) -> list[torch.Tensor]:
    """Return x_s as maps [B, C, H, W]."""
    return [s.out.transpose(1, 2).unflatten(2, (s.height, s.width)) for s in trunk.stages(images)]


# --- Detectron2


def detectron2_swin(trunk: SwinTrunk) -> nn.Module:
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.modeling import SwinTransformer

    p = trunk.preset
    reference = SwinTransformer(
        pretrain_img_size=p.pretrain_size,
        embed_dim=p.embed_dim,
        depths=p.depths,
        num_heads=p.num_heads,
        window_size=p.window,
        mlp_ratio=p.mlp_ratio,
        ape=p.absolute_position,
        drop_path_rate=0.0,
    )
    missing, unexpected = reference.load_state_dict(trunk.state_dict(), strict=False)
    assert not unexpected and all("relative_position_index" in k or "norm" in k for k in missing)
    for index in range(4):
        setattr(reference, f"norm{index}", nn.Identity())
    return reference.eval()


def check_detectron2(preset: SwinPreset, size: tuple[int, int], batch: int = 1) -> None:
    trunk = randomise(SwinTrunk(preset))
    images = torch.randn(batch, 3, *size)
    with torch.no_grad():
        reference = detectron2_swin(trunk)(images)
    for ours, theirs in zip(outputs(trunk, images), reference.values(), strict=True):
        assert ours.shape == theirs.shape
        assert difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize("size", [(1, 1), (7, 13), (33, 250)])
def test_equals_detectron2_at_odd_sizes(size, window, absolute):
    check_detectron2(replace(WIDE, window=window, absolute_position=absolute), size, batch=2)


def test_equals_detectron2_at_full_size():
    check_detectron2(WIDE, (800, 1333))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 150), width=st.integers(1, 150), absolute=st.booleans())
def test_equals_detectron2_at_any_size(height, width, absolute):
    check_detectron2(replace(NANO, absolute_position=absolute), (height, width))


# --- torchvision


def torchvision_swin(trunk: SwinTrunk) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    p = trunk.preset
    reference = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=p.embed_dim,
        depths=list(p.depths),
        num_heads=list(p.num_heads),
        window_size=[p.window, p.window],
        stochastic_depth_prob=0.0,
    )
    state = {}
    for key, value in trunk.state_dict().items():
        key = key.replace("patch_embed.proj", "features.0.0").replace(
            "patch_embed.norm", "features.0.2"
        )
        if key.startswith("layers."):
            _, stage, kind, *rest = key.split(".")
            if kind == "blocks":
                key = f"features.{2 * int(stage) + 1}.{'.'.join(rest)}"
            else:
                key = f"features.{2 * int(stage) + 2}.{'.'.join(rest)}"
        state[key.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")] = value
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_index" in k or k.startswith(("norm", "head")) for k in missing)
    return reference.eval()


def torchvision_outputs(trunk: SwinTrunk, images: torch.Tensor) -> list[torch.Tensor]:
    height, width = images.shape[-2:]  # its patch embedding drops what a patch does not fill
    x = F.pad(images, (0, -width % 4, 0, -height % 4))
    maps = []
    with torch.no_grad():
        for index, layer in enumerate(torchvision_swin(trunk).features):
            x = layer(x)
            if index % 2:
                maps.append(x.permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize(
    ("window", "size"), [(4, (161, 210)), (4, (300, 190)), (7, (403, 457)), (7, (800, 1333))]
)
def test_equals_torchvision_where_no_window_covers_a_map(window, size):
    trunk = randomise(SwinTrunk(replace(WIDE, window=window)))
    images = torch.randn(1, 3, *size)
    pairs = zip(outputs(trunk, images), torchvision_outputs(trunk, images), strict=True)
    for ours, theirs in pairs:
        assert difference(ours, theirs) < 1e-5


def test_differs_from_torchvision_where_one_window_covers_a_map():
    """The official detection code and Detectron2 keep the shift there, and so does the trunk."""
    trunk = randomise(SwinTrunk(NANO))
    images = torch.randn(1, 3, 64, 64)  # maps of 16, 8, 4 and 2 tokens a side; the window has 4
    pairs = zip(outputs(trunk, images), torchvision_outputs(trunk, images), strict=True)
    differences = [difference(ours, theirs) for ours, theirs in pairs]
    assert max(differences[:2]) < 1e-5 and min(differences[2:]) > 1e-3


# --- timm


@pytest.mark.parametrize(("window", "size"), [(4, (128, 256)), (7, (448, 224))])
def test_equals_timm_where_windows_tile_every_map(window, size):
    timm_swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    trunk = randomise(SwinTrunk(replace(WIDE, window=window)))
    p = trunk.preset
    reference = timm_swin.SwinTransformer(
        img_size=size,
        embed_dim=p.embed_dim,
        depths=p.depths,
        num_heads=p.num_heads,
        window_size=window,
        always_partition=True,
        drop_path_rate=0.0,
    ).eval()
    state = {}
    for key, value in trunk.state_dict().items():
        if ".downsample." in key:  # timm's patch merging begins the next stage
            _, stage, *rest = key.split(".")
            key = f"layers.{int(stage) + 1}.{'.'.join(rest)}"
        state[key] = value
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith(("norm", "head")) for key in missing)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = reference.forward_intermediates(images, intermediates_only=True, norm=False)
    for ours, theirs in zip(outputs(trunk, images), maps, strict=True):
        assert difference(ours, theirs) < 1e-5


# --- the definition


def brute_force_attention(block: SwinBlock, x: torch.Tensor) -> torch.Tensor:
    """The sublayer on [H, W, C], token by token: a query attends to the tokens that share its
    window after padding and shifting, at the cost of −100 if they are no neighbours in the map."""
    side, shift, attention = block.window, block.shift, block.attn
    height, width, dim = x.shape
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded = x.new_zeros(rows, columns, dim)
    padded[:height, :width] = block.norm1(x)
    qkv = attention.qkv(padded).unflatten(2, (3, attention.num_heads, -1))
    place = {}  # position after the shift → token of the padded map
    for r, c in itertools.product(range(rows), range(columns)):
        place[r, c] = ((r + shift) % rows, (c + shift) % columns)

    def region(position: int, size: int) -> int:
        return (position >= size - side) + (position >= size - shift)

    out = x.new_zeros(rows, columns, dim)
    for (r, c), (tr, tc) in place.items():
        query = qkv[tr, tc, 0]
        logits, values = [], []
        for kr, kc in itertools.product(range(side), range(side)):
            kr, kc = r // side * side + kr, c // side * side + kc
            key_row, key_column = place[kr, kc]
            row = (r - kr + side - 1) * (2 * side - 1) + (c - kc + side - 1)
            logit = (query * qkv[key_row, key_column, 1]).sum(1) * query.shape[1] ** -0.5
            logit = logit + attention.relative_position_bias_table[row]
            here = region(r, rows), region(c, columns)
            if shift and here != (region(kr, rows), region(kc, columns)):
                logit = logit - 100
            logits.append(logit)
            values.append(qkv[key_row, key_column, 2])
        share = torch.stack(logits).softmax(dim=0)
        out[tr, tc] = (share[:, :, None] * torch.stack(values)).sum(0).flatten()
    return attention.proj(out)[:height, :width]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("size", [(3, 6), (5, 4), (1, 1), (7, 2)])
def test_window_attention_equals_its_definition(size, shift):
    block = randomise(SwinBlock(8, 2, window=3, shift=shift, mlp_ratio=2.0)).double()
    x = torch.randn(*size, 8).double()
    mask = shift_mask(*size, 3, 1, x.device)
    with torch.no_grad():
        ours = block.window_attention(block.norm1(x[None]), mask)[0]
        expected = brute_force_attention(block, x)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


# --- stages and taps


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), count=st.integers(1, 4))
def test_stages_have_the_stated_shapes(height, width, count):
    trunk = SwinTrunk(NANO)
    stages = list(trunk.stages(torch.rand(2, 3, height, width), count=count))
    assert [s.index for s in stages] == list(range(count))
    for s in stages:
        stride = 4 * 2**s.index
        assert (s.height, s.width) == (-(-height // stride), -(-width // stride))
        shape = (2, s.height * s.width, NANO.dims[s.index])
        assert {tuple(t.shape) for t in [*s.msa, *s.mlp, s.out]} == {shape}
        assert len(s.msa) == 0 and len(s.mlp) == NANO.depths[s.index]
        if s.index < 3:
            tokens = -(-s.height // 2) * -(-s.width // 2)
            assert s.merged.shape == (2, tokens, NANO.dims[s.index + 1])
        else:
            assert s.merged is None


def test_taps_are_the_residual_stream_or_the_sublayers_outputs():
    trunk = randomise(SwinTrunk(NANO))
    images = torch.rand(1, 3, 50, 70)
    residual = list(trunk.stages(images, taps="residual"))
    sublayer = list(trunk.stages(images, taps="sublayer"))
    for b, r in zip(trunk.stages(images, taps="block"), residual, strict=True):
        assert b.msa == [] and len(r.msa) == len(r.mlp) == len(b.mlp)
        assert all(torch.equal(*pair) for pair in zip(b.mlp, r.mlp, strict=True))
    before = trunk.patch_embed(images).flatten(1, 2)
    for r, s in zip(residual, sublayer, strict=True):
        for msa, mlp, attended, projected in zip(r.msa, r.mlp, s.msa, s.mlp, strict=True):
            torch.testing.assert_close(msa, before + attended)
            torch.testing.assert_close(mlp, msa + projected)
            before = mlp
        assert torch.equal(before, r.out) and torch.equal(r.out, s.out)
        before = r.merged
    assert all(not s.msa and not s.mlp for s in trunk.stages(images, taps=None))


def test_unused_taps_are_freed():
    """They are freed before the next stage is computed."""
    trunk = SwinTrunk(NANO)
    highway = Highway(NANO.dims, NANO.depths, "frozen")
    alive, checked = [], []

    def watch(taps):
        alive.extend(weakref.ref(tap) for tap in taps)
        assert all(reference() is not None for reference in alive[-len(taps) :])

    def before_stage(*_):
        checked.append(len(alive))
        assert not any(reference() is not None for reference in alive)

    for layer in trunk.layers:
        layer.register_forward_pre_hook(before_stage)
    for stage in trunk.stages(torch.rand(1, 3, 64, 64), taps="residual"):
        watch(stage.msa + stage.mlp[:-1])  # the last one is x_s itself
        del stage
    assert checked == [0, 3, 6, 9]
    for module in highway.stages:
        module.register_forward_pre_hook(lambda _, args: watch(args[0].msa + args[0].mlp[:-1]))
    with torch.no_grad():
        stages = trunk.stages(torch.rand(1, 3, 64, 64), taps="residual")
        highway(stages, trunk.patch_mergings)
    assert checked[4:] == [12, 15, 18, 21]


# --- frozen


def test_nothing_of_a_frozen_trunk_is_in_autograd():
    trunk = SwinTrunk(NANO).train()
    assert not any(module.training for module in trunk.modules())
    assert not any(p.requires_grad for p in trunk.parameters())
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    for stage in trunk.stages(images):
        assert torch.is_grad_enabled()  # the consumer's own mode
        tensors = [*stage.msa, *stage.mlp, stage.out]
        assert not any(t.requires_grad for t in tensors)
        assert stage.merged is None or not stage.merged.requires_grad


def test_a_trunk_that_trains_is_in_autograd():
    trunk = SwinTrunk(NANO, frozen=False).train()
    assert all(module.training for module in trunk.modules())
    *_, last = trunk.stages(torch.rand(1, 3, 64, 64))
    last.out.square().sum().backward()
    assert all(p.grad is not None for p in trunk.parameters())
    with torch.no_grad():
        assert not next(trunk.stages(torch.rand(1, 3, 8, 8))).out.requires_grad


def test_check_frozen_finds_a_parameter_that_can_change():
    trunk = SwinTrunk(NANO)
    weight = trunk.layers[1].blocks[0].attn.qkv.weight
    trunk.check_frozen(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1))
    with pytest.raises(TrunkNotFrozenError, match="qkv.weight is in the optimizer"):
        trunk.check_frozen(torch.optim.SGD([weight], lr=1))
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(TrunkNotFrozenError, match="qkv.weight got a gradient"):
        trunk.check_frozen()
    weight.grad = None
    weight.requires_grad_(True)
    with pytest.raises(TrunkNotFrozenError, match="qkv.weight requires grad"):
        trunk.check_frozen()


def test_wrong_use_is_one_clear_line():
    with pytest.raises(UserError, match="no Swin preset 'swin_x': expected one of swin_t"):
        SwinTrunk("swin_x")
    trunk = SwinTrunk(NANO)
    with pytest.raises(UserError, match="taps 'all': expected one of"):
        next(trunk.stages(torch.rand(1, 3, 8, 8), taps="all"))
    for shape in ((3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)):
        with pytest.raises(UserError, match=r"expected \[B, 3, H, W\]"):
            next(trunk.stages(torch.rand(shape)))
