"""The fast trunk equals the plain one: to rounding in float64, closely in half precision."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import PRESETS, SwinTrunk, UserError
from e3va.ops.products import Product
from e3va.swin import fast_trunk
from e3va.swin.precision import compute_dtype, fast_half, storage_dtype
from e3va.swin.storage import store_as
from e3va.swin.trunk import TAPS
from e3va.swin.windows import kind_masks, plan_windows, shift_mask, to_windows

NANO = PRESETS["swin_nano"]
CPU = torch.device("cpu")


def pair(preset=NANO, dtype=torch.float64, seed=0) -> tuple[SwinTrunk, SwinTrunk]:
    """Return a fast and a plain trunk with the same random weights."""
    torch.manual_seed(seed)
    fast, plain = SwinTrunk(preset).to(dtype), SwinTrunk(preset, fast=False).to(dtype)
    for parameter in fast.parameters():
        parameter.data.add_(0.15 * torch.randn_like(parameter))
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def check(fast, plain, images, taps, **tolerance) -> None:
    stages = zip(fast.stages(images, taps=taps), plain.stages(images, taps=taps), strict=True)
    for one, other in stages:
        assert (one.index, one.height, one.width) == (other.index, other.height, other.width)
        assert len(one.msa) == len(other.msa) and len(one.mlp) == len(other.mlp)
        ours, theirs = ([*s.msa, *s.mlp, s.out, s.merged] for s in (one, other))
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("taps", [*TAPS, None])
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    batch=st.integers(1, 3),
    window=st.integers(1, 5),
    absolute=st.booleans(),
    rows=st.sampled_from([1, 40, 10**6]),
)
def test_equals_the_plain_trunk(taps, height, width, batch, window, absolute, rows):
    """This holds for every size and number of chunks."""
    fast, plain = pair(replace(NANO, window=window, absolute_position=absolute))
    images = torch.randn(batch, 3, height, width).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fast_trunk.CHUNK_BYTES, "cpu", rows * 64 * 8)
        check(fast, plain, images, taps, rtol=1e-9, atol=1e-10)


def test_equals_the_plain_trunk_in_float32():
    fast, plain = pair(replace(NANO, window=7), torch.float32)
    check(fast, plain, torch.randn(2, 3, 130, 90), "residual", rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_float32_as_the_plain_modules_are(dtype):
    reference, plain = pair(dtype=torch.float32)
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    half = SwinTrunk(NANO, precision=name)
    half.load_state_dict(reference.state_dict())
    plain = plain.to(dtype)
    images = torch.randn(1, 3, 150, 130)
    stages = zip(*(t.stages(i) for t, i in ((reference, images), (half, images))), strict=True)
    plain_stages = plain.stages(images.to(dtype))
    for (exact, ours), theirs in zip(stages, plain_stages, strict=True):
        assert ours.out.dtype is dtype and ours.mlp[0].dtype is dtype
        errors = [(s.out.float() - exact.out).norm() / exact.out.norm() for s in (ours, theirs)]
        assert 0 < errors[0] < 1.1 * errors[1] + 1e-4 and errors[0] < 0.03


def test_autocast_does_not_affect_the_fast_trunk():
    fast, _ = pair(dtype=torch.float32)
    fast.precision = "fp32"
    images = torch.rand(1, 3, 50, 70)
    expected = [s.out for s in fast.stages(images)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [s.out for s in fast.stages(images)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_stored_in_half_precision_compute_in_any_type(stored):
    fast, _ = pair(dtype=torch.float32)
    store_as(fast, stored)
    assert fast.layers[0].blocks[0].attn.qkv.weight.dtype is stored
    assert fast.layers[0].downsample.reduction.weight.dtype is torch.float32
    wide = SwinTrunk(NANO)
    wide.load_state_dict(fast.state_dict())
    images = torch.rand(1, 3, 40, 60)
    for one, other in zip(fast.stages(images), wide.stages(images), strict=True):
        assert one.out.dtype is torch.float32
        torch.testing.assert_close(one.out, other.out)


def test_a_changed_weight_takes_effect_at_once():
    """Nothing that is derived from weights outlives a pass."""
    fast, plain = pair()
    images = torch.rand(1, 3, 40, 40).double()
    check(fast, plain, images, None)
    for trunk in (fast, plain):
        for parameter in trunk.parameters():
            parameter.data.mul_(1.1)
    check(fast, plain, images, None)


# --- windows


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    window=st.integers(2, 6),
    shifted=st.booleans(),
    rows=st.integers(1, 200),
)
def test_the_plan_puts_every_token_into_its_window(batch, height, width, window, shifted, rows):
    shift = window // 2 if shifted else 0
    number = torch.arange(1, batch * height * width + 1).view(batch, height, width, 1)
    padded = torch.nn.functional.pad(number, (0, 0, 0, -width % window, 0, -height % window))
    expected = to_windows(padded.roll((-shift, -shift), (1, 2)), window)[..., 0]
    masks = shift_mask(height, width, window, shift, CPU) if shift else None
    wanted = {
        (tuple(tokens.tolist()), tuple(masks[w].flatten().tolist()) if shift else ())
        for image in expected
        for w, tokens in enumerate(image)
    }
    found, seen = set(), []
    flat = number.flatten()
    for chunk in plan_windows(batch, height, width, window, shift, rows, CPU):
        own = flat[chunk.tokens]
        seen.append(own)
        places = own[chunk.gather.long()]
        assert torch.equal(places[chunk.scatter.long()], own)
        places[chunk.padding] = 0
        assert int((places == 0).sum()) == len(chunk.padding)
        for first, end, kind in chunk.groups:
            for tokens in places.view(-1, window**2)[first:end]:
                mask = tuple(kind_masks(window, shift, CPU)[kind].flatten().tolist())
                found.add((tuple(tokens.tolist()), mask if shift else ()))
                assert shift or kind == 0
    assert found == wanted
    assert torch.equal(torch.cat(seen).sort().values, flat)


# --- products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("calls", [1, 3])
def test_products_are_linear_layers(dtype, calls):
    linear = torch.nn.Linear(20, 30).to(dtype)
    product = Product(linear.weight.detach(), linear.bias.detach(), dtype, rows=9, calls=calls)
    x, other = torch.randn(9, 20, dtype=dtype), torch.randn(9, 30, dtype=dtype)
    expected = linear(x).detach()
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(product(x), expected, **tolerance)
    gelu = torch.nn.functional.gelu(expected)
    torch.testing.assert_close(product(x, "gelu"), gelu, **tolerance)
    torch.testing.assert_close(product.add(x, other), expected + other, **tolerance)


# --- precision


def test_precision_follows_the_device(monkeypatch):
    cuda = torch.device("cuda")
    for capability, half in {
        (6, 1): None,
        (7, 0): torch.float16,
        (7, 5): torch.float16,
        (8, 0): torch.bfloat16,
        (9, 0): torch.bfloat16,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        assert fast_half(cuda) is half
        assert compute_dtype("auto", cuda, mixed=False) is torch.float32
        assert compute_dtype("auto", cuda, mixed=True) is (half or torch.float32)
        # A card without fast half precision keeps half-precision weights and widens them.
        assert storage_dtype("auto", cuda, mixed=True) is (half or torch.float16)
        assert storage_dtype("auto", cuda, mixed=False) is torch.float32
    for features, half in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda f=features: f)
        assert fast_half(CPU) is half
    assert compute_dtype("fp16", CPU, mixed=False) is torch.float16
    assert storage_dtype("fp32", cuda, mixed=True) is torch.float16


def test_unknown_precision_is_refused():
    with pytest.raises(UserError, match="trunk_precision 'int4': expected one of"):
        SwinTrunk(NANO, precision="int4")
