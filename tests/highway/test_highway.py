"""The highway computes its equations, and gradients run only along it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from e3va import PRESETS, Highway, SwinPreset, SwinTrunk, UserError
from e3va.highway.adapters.conv import DepthwiseConvAdapter
from e3va.highway.adapters.dual_low_rank import DualLowRankAdapter
from e3va.highway.config import FORMS
from e3va.swin.trunk import TAPS

TINY = SwinPreset(8, (2, 1, 2, 1), (1, 1, 2, 2), window=2, pretrain_size=32)
NANO = PRESETS["swin_nano"]


def small_adapter(dim: int) -> DualLowRankAdapter:
    return DualLowRankAdapter(dim, rank=2, reduction=4)


def build(
    preset=TINY, seed=0, *, make_adapter=small_adapter, keep="half", out_stages=None, **config
):
    """Return a trunk and a highway in float64 with random parameters."""
    torch.manual_seed(seed)
    trunk = SwinTrunk(preset).double()
    out_stages = out_stages or range(len(preset.dims))
    highway = Highway(
        *(preset.dims, preset.depths, config),
        make_adapter=make_adapter,
        out_stages=out_stages,
        keep=keep,
    ).double()
    for module in (trunk, highway):
        for name, parameter in module.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data.copy_(centre + 0.3 * torch.randn_like(parameter))
    return trunk, highway


def written_out(trunk, highway, stages, downsample, form="parallel", shared=False):
    """Compute the equations of the design; only the parameters come from the highway."""

    def adapt(adapter, z):
        hidden = F.gelu(z @ adapter.d1.weight.T @ adapter.d2.weight.T + adapter.d2.bias)
        return hidden @ adapter.u1.weight.T @ adapter.u2.weight.T + adapter.u2.bias

    def merge(x, height, width, merging):
        grid = torch.zeros(
            x.shape[0], height + height % 2, width + width % 2, x.shape[2], dtype=x.dtype
        )
        grid[:, :height, :width] = x.reshape(x.shape[0], height, width, -1)
        joined = torch.cat(
            [grid[:, 0::2, 0::2], grid[:, 1::2, 0::2], grid[:, 0::2, 1::2], grid[:, 1::2, 1::2]],
            dim=3,
        )
        mean = joined.mean(dim=3, keepdim=True)
        spread = (joined.var(dim=3, keepdim=True, unbiased=False) + 1e-5).sqrt()
        normed = (joined - mean) / spread * merging.norm.weight + merging.norm.bias
        return (normed @ merging.reduction.weight.T).flatten(1, 2)

    outputs, h = [], 0.0
    for stage, own in zip(stages, highway.stages, strict=True):
        blocks = len(stage.mlp)
        if shared:
            assert len(own.mlp) == 1 and len(own.msa) == (len(stage.msa) > 0)
        msa, mlp = ([*m] * (blocks if shared else 1) for m in (own.msa, own.mlp))
        if form == "parallel":
            h = h + sum(adapt(a, z) for a, z in zip(msa, stage.msa, strict=True))
            h = h + sum(adapt(a, z) for a, z in zip(mlp, stage.mlp, strict=True))
        else:
            for block in range(blocks):
                if stage.msa:
                    h = h + adapt(msa[block], stage.msa[block] + h)
                h = h + adapt(mlp[block], stage.mlp[block] + h)
        y = stage.out + h
        norm = own.out_norm
        out = F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)
        outputs.append(out.transpose(1, 2).reshape(*out.shape[::2], stage.height, stage.width))
        merging = trunk.patch_mergings[stage.index]
        if merging is not None:
            size = (stage.height, stage.width, merging)
            h = (
                merge(h, *size)
                if downsample == "direct"
                else merge(y, *size) - merge(stage.out, *size)
            )
    return outputs


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("downsample", ["offset", "direct"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("keep", [None, "half"])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_are_those_of_the_equations(shared, keep, form, downsample, taps):
    settings = {"downsample": downsample, "taps": taps, "form": form, "shared": shared}
    trunk, highway = build(**settings, keep=keep)
    stages = list(trunk.stages(torch.rand(2, 3, 45, 70).double(), taps=taps))
    ours = highway(stages, trunk.patch_mergings)
    theirs = written_out(trunk, highway, stages, downsample, form, shared)
    weights = [torch.randn_like(out) for out in ours]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [
        torch.autograd.grad(
            sum((o * w).sum() for o, w in zip(outputs, weights, strict=True)),
            list(highway.parameters()),
        )
        for outputs in (ours, theirs)
    ]
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "make_adapter", [small_adapter, partial(DepthwiseConvAdapter, rank=2, kernel=3)]
)
@pytest.mark.parametrize(("form", "downsample"), [("chain", "offset"), ("parallel", "direct")])
@pytest.mark.parametrize("keep", [None, "half"])
def test_gradcheck(keep, form, downsample, make_adapter):
    trunk, highway = build(
        SwinPreset(4, (1, 1), (1, 1), window=2),
        form=form,
        downsample=downsample,
        out_stages=(0, 1),
        make_adapter=make_adapter,
        keep=keep,
    )
    stages = list(trunk.stages(torch.rand(1, 3, 9, 13).double()))
    parameters = tuple(highway.parameters())
    assert torch.autograd.gradcheck(
        lambda *_: tuple(highway(stages, trunk.patch_mergings)), parameters
    )


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("make_adapter", [DualLowRankAdapter, DepthwiseConvAdapter])
@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_new_highway_gives_the_normed_trunk(make_adapter, taps, height, width):
    """Check property 1 to the bit: the offset of zero adapters is exactly zero."""
    torch.manual_seed(height)
    trunk = SwinTrunk(NANO)
    highway = Highway(NANO.dims, NANO.depths, {"taps": taps}, make_adapter=make_adapter)
    stages = list(trunk.stages(torch.randn(2, 3, height, width), taps=taps))
    for out, stage in zip(highway(stages, trunk.patch_mergings), stages, strict=True):
        expected = F.layer_norm(stage.out, stage.out.shape[-1:])
        expected = expected.transpose(1, 2).unflatten(2, (stage.height, stage.width))
        assert torch.equal(out, expected)


def test_direct_downsampling_is_no_identity_because_a_norm_of_zeros_is_its_bias():
    """PM_s(0) = reduction · norm.bias, so the offset form is the default."""
    trunk, _ = build()
    config = {"downsample": "direct"}
    highway = Highway(TINY.dims, TINY.depths, config, make_adapter=small_adapter).double()
    first, second, *_ = trunk.stages(torch.rand(1, 3, 32, 32).double())
    _, h = highway.advance(first, None, trunk.patch_mergings[0])
    merging = trunk.layers[0].downsample
    expected = merging.reduction.weight @ merging.norm.bias
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(h, expected.detach().expand_as(second.out))


def test_backward_calls_no_module_of_the_trunk_but_the_patch_mergings():
    trunk, highway = build(keep=None)  # the fast form calls no module at all
    called = set()
    for name, module in trunk.named_modules():
        module.register_full_backward_hook(lambda *_, name=name: called.add(name))
    outputs = highway(trunk.stages(torch.rand(1, 3, 40, 40).double()), trunk.patch_mergings)
    sum(out.square().sum() for out in outputs).backward()
    assert called
    assert all(".downsample" in name for name in called), called
    assert not any(p.grad is not None for p in trunk.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in highway.parameters())


def test_several_highways_read_one_pass():
    trunk, one = build()
    _, other = build(seed=1, downsample="direct")
    images = torch.rand(1, 3, 33, 50).double()
    separate = [h(trunk.stages(images), trunk.patch_mergings) for h in (one, other)]
    carried, together = [None, None], [[], []]
    for stage in trunk.stages(images):
        for k, highway in enumerate((one, other)):
            out, carried[k] = highway.advance(stage, carried[k], trunk.patch_mergings[stage.index])
            together[k].append(out)
    for expected, got in zip(separate, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


class ConvAdapter(nn.Module):
    """An adapter that uses the positions of its tokens."""

    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, z, height, width):
        return self.conv(z.transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)


def test_any_module_can_be_the_adapter():
    trunk = SwinTrunk(NANO)
    highway = Highway(NANO.dims, NANO.depths, make_adapter=ConvAdapter)
    outputs = highway(trunk.stages(torch.rand(1, 3, 50, 70)), trunk.patch_mergings)
    assert [tuple(o.shape[2:]) for o in outputs] == [(13, 18), (7, 9), (4, 5), (2, 3)]
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is not None for p in highway.parameters())


def test_stages_after_the_last_level_are_not_built():
    highway = Highway(NANO.dims, NANO.depths, out_stages=(0, 2))
    assert len(highway.stages) == 3
    assert [stage.out_norm is not None for stage in highway.stages] == [True, False, True]


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="downsample 'pool'"):
        Highway(NANO.dims, NANO.depths, {"downsample": "pool"})
    with pytest.raises(UserError, match="form 'ring'"):
        Highway(NANO.dims, NANO.depths, {"form": "ring"})
    for stages in ((), (4,)):
        with pytest.raises(UserError, match="out_stages"):
            Highway(NANO.dims, NANO.depths, out_stages=stages)
