"""Bytes and parameters are counted as one would by hand."""

import weakref

import pytest
import torch
from torch import nn

from e3va.utils.measure import MIB, SavedBytes, count_parameters, parameter_table, track_saved_bytes


class Toy(nn.Module):
    """Three parts, one of them called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.act = nn.GELU()
        self.last = nn.ModuleList([nn.Linear(5, 4), nn.Linear(4, 4)])
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x):
        x = self.act(self.first(x))
        for layer in self.last:
            x = layer(x)
        return x * self.scale


def test_each_saved_storage_counts_once_and_parameters_do_not_count():
    toy = Toy()
    x = torch.rand(10, 6)
    with track_saved_bytes(toy, {"first": toy.first, "last": toy.last}) as saved:
        out = toy(x)
    # The first linear keeps its input, GELU its own, and each further linear its input; the
    # product with a buffer keeps the buffer, which is there anyway.
    assert saved.by_part == {"first": 10 * 6 * 4, "last": 10 * 5 * 4 + 10 * 4 * 4, "other": 200}
    assert saved.total == 240 + 360 + 200
    out.sum().backward()


def test_one_tensor_saved_twice_counts_once():
    toy = nn.Linear(3, 3)
    x = torch.rand(7, 3, requires_grad=True)
    with track_saved_bytes(toy, {}) as saved:
        out = (x * x).sum() + toy(x).sum() + x[2:].exp().sum()
    kept = 7 * 3 * 4 + 5 * 3 * 4  # x itself, and the exponential's result
    assert saved.total == kept
    assert out.requires_grad


def test_measuring_does_not_change_gradients():
    toy = Toy()
    x = torch.rand(10, 6)
    toy(x).square().sum().backward()
    expected = [p.grad.clone() for p in toy.parameters()]
    toy.zero_grad()
    with track_saved_bytes(toy, {"first": toy.first}):
        loss = toy(x).square().sum()
    loss.backward()
    for parameter, gradient in zip(toy.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_no_tensor_and_no_hook_remains():
    toy = Toy()
    with track_saved_bytes(toy, {"first": toy.first, "last": toy.last}) as saved:
        hidden = toy.first(torch.rand(4, 6))
        out = hidden.exp()
    reference = weakref.ref(hidden)
    before = saved.total
    del hidden, out
    assert reference() is None
    toy(torch.rand(4, 6))
    assert saved.total == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.modules())


def test_a_failed_part_does_not_get_later_bytes():
    toy = Toy()
    with track_saved_bytes(toy, {"first": toy.first}) as saved:
        with pytest.raises(RuntimeError):
            toy.first(torch.rand(4, 99))
        out = toy.act(torch.rand(4, 5, requires_grad=True))
    assert saved.by_part["other"] == 4 * 5 * 4
    assert out.requires_grad


def test_parameters_are_counted_by_part():
    toy = Toy()
    toy.first.requires_grad_(False)
    rows = count_parameters(toy, {"first": toy.first, "none": None})
    assert [(r.part, r.total, r.trained) for r in rows] == [("first", 35, 0), ("other", 44, 44)]
    assert [r.share for r in rows] == [0.0, 1.0]
    lines = parameter_table(rows).splitlines()
    assert lines[-1].split() == ["all", "79", "44", "55.70%"]


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    rows = count_parameters(model, {"a": model[0], "b": model[1]})
    assert [(r.part, r.total) for r in rows] == [("a", 12), ("b", 3)]


def test_text_of_saved_bytes():
    text = str(SavedBytes({"trunk": 0, "highway": 3 * MIB // 2}))
    assert text == "1.5 MiB (trunk 0.0, highway 1.5)"
