"""The form of the trunk for the exporter computes what the plain modules compute."""

import copy

import pytest
import torch

from e3va import E3VABackbone, SwinPreset
from e3va.swin.export_form import HalfLinear, make_exportable, store_in_half
from e3va.swin.storage import Int8Linear, store_in_8_bits

SMALL = SwinPreset(8, (1, 2, 1, 1), (1, 2, 2, 2), window=4, pretrain_size=64)
PLACED = SwinPreset(8, (2, 1, 1, 1), (1, 2, 2, 2), 3, pretrain_size=32, absolute_position=True)
SIZES = [(2, 96, 64), (1, 97, 131), (2, 33, 40), (1, 1, 5)]


def make_pair(preset=SMALL, highway="e3va_chain", change=lambda trunk: None, exact=False):
    """Return a plain backbone of random weights, and its copy in the exporter's form."""
    plain = E3VABackbone(preset, highway, memory="plain").eval().requires_grad_(False)
    for parameter in plain.parameters():
        parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    change(plain.trunk)
    exported = copy.deepcopy(plain)
    make_exportable(exported.trunk, exact)
    return plain, exported


@pytest.mark.parametrize(
    "preset, highway",
    [
        (SMALL, "e3va_chain"),
        (SMALL, "e3va"),
        (PLACED, "frozen"),
        (SMALL, {"recipe": "e3va_chain", "adapter": "lora", "placement": "inside"}),
    ],
)
def test_it_equals_the_plain_modules_at_any_size(preset, highway):
    plain, exported = make_pair(preset, highway)
    for batch, height, width in SIZES:
        images = torch.randn(batch, 3, height, width)
        expected, found = plain(images), exported(images)
        assert found.keys() == expected.keys()
        for level, value in expected.items():
            torch.testing.assert_close(found[level], value, rtol=1e-5, atol=1e-5)


def test_sizes_that_all_strides_divide_need_no_rounding():
    plain, exported = make_pair(exact=True)
    images = torch.randn(1, 3, 96, 160)
    for level, value in plain(images).items():
        torch.testing.assert_close(exported(images)[level], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "store, kind", [(store_in_8_bits, Int8Linear), (store_in_half, HalfLinear)]
)
def test_stored_weights_compute_the_rounded_product(store, kind):
    plain, _ = make_pair()
    weight = plain.trunk.layers[1].blocks[1].mlp.fc1.weight.clone()
    store(plain.trunk)
    layer = plain.trunk.layers[1].blocks[1].mlp.fc1
    assert isinstance(layer, kind)
    rounding = 2**-11 if kind is HalfLinear else 0.5 / 127
    assert 0 < (layer.weight - weight).abs().max() <= rounding * weight.abs().max()
    x = torch.randn(3, weight.shape[1])
    torch.testing.assert_close(layer(x), x @ layer.weight.float().T + layer.bias)
