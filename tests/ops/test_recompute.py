"""A recomputed method computes the same and keeps only its arguments."""

import copy
import pickle

import pytest
import torch
from torch import nn

from e3va.ops.recompute import recompute
from e3va.utils.measure import track_saved_bytes


class Pieces(nn.Module):
    """A module with a method that runs dropout and several layers on a list and a dict."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.norm = norm or nn.LayerNorm(64)
        self.second = nn.Linear(64, 8)
        self.calls = 0

    def piece(self, values: list, names: dict, factor: float = 1.0) -> dict:
        self.calls += 1
        x = nn.functional.dropout(self.first(values[0] + names["bias"]), 0.3, self.training)
        return {"out": factor * self.second(self.norm(x.relu().float()).sigmoid())}

    def forward(self, x):
        return self.piece([2 * x], {"bias": x.square()}, factor=3.0)["out"]


def step(module, autocast=False):
    torch.manual_seed(7)
    x = torch.randn(16, 8, requires_grad=True)
    module.zero_grad()
    with (
        track_saved_bytes(module, {}) as saved,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss = module(x).square().sum()
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad for p in module.parameters())], saved.total


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("attribute", ["forward", "piece"])
def test_values_and_gradients_are_the_same_bits_and_less_is_kept(attribute, autocast):
    plain = Pieces()
    lean = copy.deepcopy(plain)
    names = list(plain.state_dict())
    assert recompute(lean, attribute)
    expected, kept = step(plain, autocast)
    actual, kept_lean = step(lean, autocast)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert kept_lean < kept / 4 and (plain.calls, lean.calls) == (1, 2)
    assert list(lean.state_dict()) == names


def test_kept_arguments_in_lists_and_dicts_are_counted():
    module = Pieces()
    recompute(module, "piece")
    values, bias = torch.randn(16, 8), torch.randn(16, 8)
    with track_saved_bytes(module, {}) as saved:
        module.piece([values], {"bias": bias})
    assert saved.total >= values.nbytes + bias.nbytes


def test_evaluation_and_no_grad_run_the_plain_method():
    module = Pieces()
    recompute(module)
    x = torch.randn(4, 8)
    with torch.no_grad():
        assert not module(x).requires_grad
    module.eval()
    expected = module.piece([2 * x], {"bias": x.square()}, factor=3.0)["out"]
    with track_saved_bytes(module, {}) as saved:
        out = module(x)
    assert torch.equal(out, expected) and saved.total > x.nbytes * 10


def test_a_second_call_changes_nothing():
    module = Pieces()
    assert recompute(module, "piece") and recompute(module, "piece")
    step(module)
    assert module.calls == 2


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_recomputes_its_own_method(make):
    module = Pieces()
    recompute(module, "piece")
    other = make(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    expected = Pieces()
    expected.load_state_dict(other.state_dict())
    actual, wanted = step(other)[0], step(expected)[0]
    assert all(torch.equal(a, b) for a, b in zip(actual, wanted, strict=True))
    assert (module.calls, other.calls) == (0, 2)


def test_a_method_replaced_on_the_instance_stays_replaced():
    module = nn.Linear(4, 4)
    module.forward = lambda x: nn.functional.linear(x, module.weight).exp()
    expected = module(torch.ones(1, 4))
    recompute(module)
    assert torch.equal(module(torch.ones(1, 4)), expected)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_method_that_runs_batch_norm_does_not_change(norm):
    module = Pieces(norm(64))
    before = dict(vars(module))
    assert not recompute(module) and not recompute(module.eval(), "piece")
    assert vars(module).keys() == before.keys()
    assert recompute(module, "piece", runs=module.first)  # these modules include no batch norm


def test_the_second_run_has_a_context_of_its_own():
    entered = []

    class Context:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            entered.append(self.name)

        def __exit__(self, *_):
            pass

    module = Pieces()
    recompute(module, contexts=lambda: (Context("first"), Context("second")))
    step(module)
    assert entered == ["first", "second"]
