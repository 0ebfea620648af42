"""The fast forms: values equal the plain ones, gradients within the error of the stored taps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import PRESETS, E3VABackbone, Highway, SwinTrunk, UserError
from e3va.highway import fast_forms
from e3va.ops.saved_activation import FORMS, SavedActivation
from e3va.swin.presets import SwinPreset

NANO = PRESETS["swin_nano"]
WINDOW_7 = SwinPreset(24, (2, 2, 2, 2), (1, 2, 4, 8))


def backbones(*modes, preset=NANO, recipe="e3va_chain") -> list[E3VABackbone]:
    """Return backbones in several memory modes with the same random weights."""
    torch.manual_seed(0)
    first = E3VABackbone(preset, recipe, memory="plain")
    for parameter in first.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    others = [E3VABackbone(preset, recipe, memory=mode) for mode in modes]
    for other in others:
        other.load_state_dict(first.state_dict())
    return [first, *others]


def run(backbone, images) -> tuple[list, dict]:
    """Return the outputs and the gradients of a weighted sum of them."""
    outputs = [*backbone(images).values()]
    generator = torch.Generator().manual_seed(1)
    loss = sum((out.float() * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    trained = {n: p for n, p in backbone.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return [out.detach() for out in outputs], dict(zip(trained, gradients, strict=True))


def error(ours: dict, reference: dict) -> float:
    """Return the largest relative error of a parameter's gradient."""
    return max(
        float((ours[name] - value).norm() / value.norm()) for name, value in reference.items()
    )


@pytest.mark.parametrize(("mode", "most"), [("standard", 0.005), ("lean", 0.03)])
@pytest.mark.parametrize("recipe", ["e3va_chain", "e3va_wide", "e3va"])
def test_values_are_the_plain_ones_and_gradients_close(recipe, mode, most):
    """Compare relative errors: bfloat16 has a mantissa of 8 bits, and "lean" has 8 bits."""
    plain, fast = backbones(mode, preset=WINDOW_7, recipe=recipe)
    images = torch.rand(2, 3, 100, 72)
    (expected, reference), (found, gradients) = run(plain, images), run(fast, images)
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert 1e-5 < error(gradients, reference) < most


WIDE = {"recipe": "e3va_wide"}
PARALLEL = {"recipe": "e3va", "taps": "residual", "downsample": "offset"}


@pytest.mark.parametrize("config", [{}, WIDE, PARALLEL], ids=["chain", "wide", "parallel"])
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    rows=st.sampled_from([1, 7, 10**6]),
)
def test_fast_forms_equal_autograd_at_any_size(config, batch, height, width, rows):
    torch.manual_seed(height)
    trunk = SwinTrunk(NANO).double()
    images = torch.randn(batch, 3, height, width).double()
    stages = list(trunk.stages(images, taps=config.get("taps", "block")))
    sizes = NANO.dims, NANO.depths
    highways = [Highway(*sizes, config, keep=keep).double() for keep in (None, "half")]
    for parameter in highways[0].parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    highways[1].load_state_dict(highways[0].state_dict())
    results = []
    for highway in highways:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(fast_forms.CHUNK_BYTES, "cpu", rows * 4 * 16)
            outputs = highway(stages, trunk.patch_mergings)
            loss = sum((out * (out + 1).cos()).sum() for out in outputs)
            results.append((outputs, torch.autograd.grad(loss, list(highway.parameters()))))
    for ours, theirs in zip(*results, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("mode", ["standard", "lean"])
def test_under_autocast_it_is_as_close_to_float32_as_the_plain_modules(mode):
    plain, fast = backbones(mode, preset=WINDOW_7)
    for backbone in (plain, fast):
        backbone.trunk.fast, backbone.trunk.precision = True, "fp32"  # only the highways differ
    images = torch.rand(1, 3, 96, 80)
    expected, reference = run(plain, images)
    with torch.autocast("cpu", torch.bfloat16):
        results = [run(backbone, images) for backbone in (plain, fast)]
    errors = [error(gradients, reference) for _, gradients in results]
    assert errors[1] < 1.3 * errors[0] + 0.01
    for found, _ in results:
        for one, other in zip(found, expected, strict=True):
            assert one.dtype is torch.float32
            assert (one - other).norm() < 0.02 * other.norm()


def test_frozen_backbone_has_a_fast_form_too():
    plain, fast = backbones("standard", recipe="frozen")
    images = torch.rand(1, 3, 64, 50)
    (expected, reference), (found, gradients) = run(plain, images), run(fast, images)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert error(gradients, reference) < 0.005


def test_without_gradients_nothing_is_kept_and_values_are_the_same():
    _, fast = backbones("lean")
    images = torch.rand(1, 3, 64, 50)
    expected = fast(images)
    with torch.inference_mode():
        found = fast(images)
    for name, value in expected.items():
        assert torch.equal(found[name], value)
        assert value.requires_grad and not found[name].requires_grad
    fast(images)["p3"].sum().backward()  # plans made in inference mode serve training as well


def test_unused_levels_get_no_gradient():
    plain, fast = backbones("standard")
    images = torch.rand(1, 3, 64, 64)
    for level in ("p0", "p2"):
        gradients = []
        for backbone in (plain, fast):
            backbone.zero_grad()
            backbone(images)[level].cos().sum().backward()
            gradients.append({n: p.grad for n, p in backbone.named_parameters()})
        for name, value in gradients[0].items():
            other = gradients[1][name]
            if value is None or other is None:
                assert (value is None or not value.any()) and (other is None or not other.any())
            elif value.norm() > 1e-6:
                assert (other - value).norm() < 0.01 * value.norm()


def test_a_trunk_that_trains_gets_its_gradients():
    """The fast forms compute no gradient for the trunk, so autograd runs here."""
    trunk = SwinTrunk(NANO, frozen=False)
    highways = [Highway(NANO.dims, NANO.depths, keep=keep) for keep in (None, "half")]
    highways[1].load_state_dict(highways[0].state_dict())
    images = torch.rand(1, 3, 48, 40)
    results = []
    for highway in highways:
        loss = sum(o.cos().sum() for o in highway(trunk.stages(images), trunk.patch_mergings))
        results.append(torch.autograd.grad(loss, list(trunk.parameters())))
    for one, other in zip(*results, strict=True):
        assert one.any()
        assert torch.equal(one, other)


# --- what is kept


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 30), channels=st.integers(1, 130), form=st.sampled_from(FORMS))
def test_kept_maps_differ_only_by_their_rounding(tokens, channels, form):
    torch.manual_seed(tokens)
    values = torch.randn(tokens, channels)
    kept = SavedActivation.empty(form, values, values.dtype)
    middle = tokens // 2
    kept.put(slice(0, middle), values[:middle])
    kept.put(slice(middle, tokens), values[middle:])
    again = SavedActivation(form, kept.tensors, values.dtype).get(slice(0, tokens))
    assert again.dtype is values.dtype and again.shape == values.shape
    if form == "half":
        assert torch.equal(again, values.bfloat16().float())
    else:
        # Half a step of 127 for the group's largest, and the rounding of the scale to bfloat16.
        assert (again - values).abs().max() <= values.abs().max() * (0.5 / 127 + 2**-8)


def test_a_large_channel_only_affects_its_group_in_8_bits():
    values = torch.randn(5, 128)
    values[:, 100] = 50.0
    kept = SavedActivation.empty("int8", values, values.dtype)
    kept.put(slice(None), values)
    wrong = (kept.get(slice(None)) - values).abs()
    assert wrong[:, :64].max() < 0.03 < wrong[:, 64:].max() < 0.3


def test_a_map_of_zeros_is_kept_as_zeros():
    kept = SavedActivation.empty("int8", torch.zeros(3, 8), torch.float32)
    kept.put(slice(None), torch.zeros(3, 8))
    assert not kept.get(slice(None)).any()


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="keep 'int4': expected one of"):
        Highway(NANO.dims, NANO.depths, keep="int4")
    with pytest.raises(UserError, match="memory 'tiny': expected one of"):
        E3VABackbone(NANO, memory="tiny")
    with pytest.raises(UserError, match="trunk_precision 'bf16' with memory 'plain'"):
        E3VABackbone(NANO, memory="plain", trunk_precision="bf16")
