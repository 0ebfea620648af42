"""Adapters and their gradients equal their formulas; new adapters are the zero map."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import UserError
from e3va.highway.adapters.conv import DepthwiseConvAdapter
from e3va.highway.adapters.dual_low_rank import DualLowRankAdapter


def formula(adapter: DualLowRankAdapter, z: torch.Tensor) -> torch.Tensor:
    """Compute U2 · U1 · GELU(D2 · D1 · z + b_d) + b_u with matrices and the error function."""
    d1, d2, u1, u2 = (getattr(adapter, name).weight for name in ("d1", "d2", "u1", "u2"))
    hidden = torch.einsum("hr,rc,btc->bth", d2, d1, z) + adapter.d2.bias
    active = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return torch.einsum("cr,rh,bth->btc", u2, u1, active) + adapter.u2.bias


def mixing_formula(
    adapter: DepthwiseConvAdapter, z: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """Compute σ · (U · GELU(y + K * y) + b_u), y = D · (z − μ) / σ + b_d, neighbor by neighbor."""
    centred = z - z.mean(-1, keepdim=True)
    std = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    down, kernel, up = (
        layer.weight * 8 / math.sqrt(fan_in)
        for layer, fan_in in (
            (adapter.down, z.shape[2]),
            (adapter.conv, adapter.conv.weight.shape[-1] ** 2),
            (adapter.up, adapter.up.weight.shape[1]),
        )
    )
    y = torch.einsum("rc,btc->btr", down, centred / std) + adapter.down.bias
    y = y.view(len(z), height, width, -1)
    kernel, reach = kernel[:, 0], kernel.shape[-1] // 2
    rows = []
    for row in range(height):
        for column in range(width):
            hidden = y[:, row, column] + adapter.conv.bias
            for other_row in range(max(0, row - reach), min(height, row + reach + 1)):
                for other in range(max(0, column - reach), min(width, column + reach + 1)):
                    weight = kernel[:, other_row - row + reach, other - column + reach]
                    hidden = hidden + weight * y[:, other_row, other]
            rows.append(hidden)
    hidden = torch.stack(rows, dim=1)
    active = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return std * (torch.einsum("cr,btr->btc", up, active) + adapter.up.bias)


def trained(dim=8, rank=3, reduction=2) -> DualLowRankAdapter:
    return randomised(DualLowRankAdapter(dim, rank, reduction))


def randomised(adapter):
    adapter = adapter.double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


@pytest.mark.parametrize("kind", [DualLowRankAdapter, DepthwiseConvAdapter])
def test_new_adapter_adds_nothing_and_can_learn(kind):
    adapter = kind(32, rank=4)
    z = torch.randn(2, 6, 32)
    out = adapter(z, 2, 3)
    assert torch.equal(out, torch.zeros_like(z))
    (out - 1).square().sum().backward()
    last = adapter.u2 if kind is DualLowRankAdapter else adapter.up
    assert last.weight.grad.abs().max() > 0 and last.bias.grad.abs().max() > 0


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    hidden=st.integers(1, 5),
    reduction=st.integers(1, 4),
    rank=st.integers(1, 6),
)
def test_equals_the_formula(batch, height, width, hidden, reduction, rank):
    dim = hidden * reduction
    adapter = trained(dim, rank, reduction)
    z = torch.randn(batch, height * width, dim).double()
    torch.testing.assert_close(adapter(z, height, width), formula(adapter, z))
    count = dim * rank + rank * hidden + hidden + hidden * rank + rank * dim + dim
    assert sum(p.numel() for p in adapter.parameters()) == count


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 5),
    width=st.integers(1, 6),
    dim=st.integers(2, 9),
    rank=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5]),
)
def test_mixing_adapter_equals_its_formula(batch, height, width, dim, rank, kernel):
    adapter = randomised(DepthwiseConvAdapter(dim, rank, kernel))
    z = torch.randn(batch, height * width, dim).double()
    torch.testing.assert_close(adapter(z, height, width), mixing_formula(adapter, z, height, width))
    count = dim * rank + rank + rank * kernel**2 + rank + rank * dim + dim
    assert sum(p.numel() for p in adapter.parameters()) == count


def test_gradients_of_the_mixing_adapter_are_those_of_its_formula():
    adapter = randomised(DepthwiseConvAdapter(6, 3, 3))
    z = torch.randn(1, 12, 6).double().requires_grad_()
    inputs = (z, *adapter.parameters())
    assert torch.autograd.gradcheck(lambda *_: adapter(z, 3, 4), inputs)
    weight = torch.randn(1, 12, 6).double()
    ours = torch.autograd.grad((adapter(z, 3, 4) * weight).sum(), inputs)
    theirs = torch.autograd.grad((mixing_formula(adapter, z, 3, 4) * weight).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_mixing_adapter_changes_every_scale_of_taps_by_the_same_share():
    adapter = randomised(DepthwiseConvAdapter(32, 4))
    z = torch.randn(1, 9, 32).double()
    expected = 100 * adapter(z, 3, 3)
    torch.testing.assert_close(adapter(100 * z + 3, 3, 3), expected, rtol=1e-3, atol=1e-2)


def test_one_learning_rate_moves_the_mixing_adapter_equally_at_any_width_rank_and_scale():
    def moved(dim, rank, scale):
        torch.manual_seed(0)
        adapter = DepthwiseConvAdapter(dim, rank)
        z, direction = scale * torch.randn(4, 64, dim), torch.randn(4, 64, dim)
        optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (adapter(z, 8, 8) * direction).sum().backward()
            optimizer.step()
        return (adapter(z, 8, 8).norm() / z.norm()).item()

    shares = [moved(*sizes) for sizes in ((32, 8, 1), (512, 8, 10), (32, 32, 10), (128, 32, 1))]
    assert max(shares) < 1.5 * min(shares)


def test_mixing_adapter_keeps_one_map_of_its_input_width():
    adapter = DepthwiseConvAdapter(64, rank=2)
    z = torch.randn(1, 100, 64, requires_grad=True)
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = adapter(z, 10, 10)
    for parameter in adapter.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    assert out.requires_grad and z.untyped_storage().data_ptr() not in storages
    one_map, narrow, matrices = z.numel() * 4, 100 * 2 * 4, (64 + 25 + 64) * 2 * 4
    assert one_map <= sum(storages.values()) <= one_map + 6 * narrow + matrices


def test_mixing_adapter_under_autocast_is_close_to_float32():
    torch.manual_seed(0)
    adapter = randomised(DepthwiseConvAdapter(32, 4)).float()
    z = 100 * torch.randn(1, 9, 32)
    expected, expected_gradient = _with_gradient(adapter, z)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradient = _with_gradient(adapter, z)
    assert (found - expected).norm() < 0.03 * expected.norm()
    assert (gradient - expected_gradient).norm() < 0.05 * expected_gradient.norm()


def _with_gradient(adapter, z):
    z = z.clone().requires_grad_()
    out = adapter(z, 3, 3)
    return out, torch.autograd.grad(out.float().square().sum(), z)[0]


def test_gradients_are_those_of_the_formula():
    adapter = trained()
    z = torch.randn(1, 4, 8).double().requires_grad_()
    parameters = list(adapter.parameters())
    assert torch.autograd.gradcheck(lambda *_: adapter(z, 2, 2), (z, *parameters))
    weight = torch.randn(1, 4, 8).double()
    ours = torch.autograd.grad((adapter(z, 2, 2) * weight).sum(), (z, *parameters))
    theirs = torch.autograd.grad((formula(adapter, z) * weight).sum(), (z, *parameters))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_signal_reaches_u2_at_unit_scale_whatever_the_widths():
    """Then the first gradient of U2 does not depend on C, r or q."""
    for dim, rank, reduction in ((96, 16, 4), (1536, 16, 4), (1536, 64, 2), (96, 4, 8)):
        torch.manual_seed(0)
        adapters = [DualLowRankAdapter(dim, rank, reduction) for _ in range(8)]
        z = torch.randn(64, dim)
        inner = torch.stack([a.u1(torch.nn.functional.gelu(a.d2(a.d1(z)))) for a in adapters])
        assert 0.3 < inner.std().item() < 1.2


def test_wrong_sizes_are_refused():
    with pytest.raises(UserError, match="rank 0"):
        DualLowRankAdapter(8, rank=0)
    with pytest.raises(UserError, match="reduction 3.* 8 "):
        DualLowRankAdapter(8, reduction=3)
    with pytest.raises(UserError, match="rank 0"):
        DepthwiseConvAdapter(8, rank=0)
    for kernel in (0, 4):
        with pytest.raises(UserError, match=f"kernel {kernel}"):
            DepthwiseConvAdapter(8, kernel=kernel)
