"""Candidates of the highway: identity at the start, frozen trunk, gradients, honest titles."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, StageOutput, get_preset
from e3va.utils.measure import track_saved_bytes

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
from accuracy import candidate_adapters, candidate_highways  # noqa: E402
from accuracy.candidates import CANDIDATES  # noqa: E402

sys.path.remove(str(BENCHMARKS))

PRESET = get_preset("swin_mini")
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=CANDIDATES)
def untouched(request) -> E3VABackbone:
    """A candidate's backbone in training mode, with its name."""
    method = CANDIDATES[request.param]
    build = method.backbone or (lambda preset: E3VABackbone(preset, method.highway))
    result = build(PRESET).train()
    result.name = request.param
    return result


@pytest.fixture
def backbone(untouched) -> E3VABackbone:
    return copy.deepcopy(untouched)


def out_norms(backbone: E3VABackbone) -> list[nn.Module]:
    highway = backbone.highway
    if isinstance(highway, candidate_highways.PowerOutHighway):
        return [*highway.out_norm]
    return [stage.out_norm for stage in highway.stages]


def test_share_is_that_of_the_title(untouched):
    sizes = [(p.numel(), p.requires_grad) for p in untouched.parameters()]
    share = 100 * sum(n for n, trained in sizes if trained) / sum(n for n, _ in sizes)
    title = CANDIDATES[untouched.name].title
    assert re.search(r": (\d+\.\d\d)%$", title)[1] == f"{share:.2f}", title
    if not untouched.name.startswith("copy"):
        limit = 5 if untouched.name.startswith("wide") else 1.5
        assert 0.85 * limit < share <= limit


def test_start_is_the_identity(backbone):
    """The pyramid is that of a backbone without adapters that has the same norms."""
    found = backbone(IMAGES)  # may set the norms' first weights
    frozen = E3VABackbone(PRESET, "frozen", trunk=backbone.trunk)
    for own, norm in zip(frozen.highway.stages, out_norms(backbone), strict=True):
        own.out_norm.load_state_dict(norm.state_dict(), strict=False)
    # Plain modules repeat in these what the trunk and the norms compute in their fast forms.
    rounded = backbone.name.startswith("copy") or backbone.name == "power out"
    tolerance = 1e-5 if rounded else 0
    for name, expected in frozen(IMAGES).items():
        torch.testing.assert_close(found[name], expected, rtol=tolerance, atol=tolerance)


def test_trunk_stays_frozen_and_everything_else_learns(backbone, monkeypatch):
    seen = []

    def stages(*args, _stages=backbone.trunk.stages, **kwargs):
        for stage in _stages(*args, **kwargs):
            seen.extend(t for t in (*stage.msa, *stage.mlp, stage.out, stage.merged))
            yield stage

    monkeypatch.setattr(backbone.trunk, "stages", stages)
    before = {name: t.clone() for name, t in backbone.trunk.state_dict().items()}
    own = {name: p for name, p in backbone.named_parameters() if not name.startswith("trunk.")}
    optimizer = torch.optim.Adam(own.values(), lr=1e-2)
    # Random weights, as the sum of a normed map is constant.
    weights = [torch.randn(out.shape) for out in backbone(IMAGES).values()]
    for _ in range(2):
        optimizer.zero_grad()
        outputs = backbone(IMAGES).values()
        sum((out * w).sum() for out, w in zip(outputs, weights, strict=True)).backward()
        optimizer.step()
    for name, parameter in own.items():
        assert parameter.requires_grad and parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    backbone.trunk.check_frozen(optimizer)
    assert not any(t.requires_grad for t in seen if t is not None)
    assert all(torch.equal(t, before[name]) for name, t in backbone.trunk.state_dict().items())


def test_saved_weights_give_the_same_features(untouched, backbone):
    """What starts in the first training batch does not start again in a loaded model."""
    optimizer = torch.optim.SGD(backbone.highway.parameters(), lr=1e-3)
    sum(out.square().sum() for out in backbone(IMAGES).values()).backward()
    optimizer.step()
    other = copy.deepcopy(untouched)
    other.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        expected = backbone(IMAGES + 0.1)
        for name, out in other(IMAGES + 0.1).items():
            torch.testing.assert_close(out, expected[name])


# --- the parts


def test_principal_components_against_their_covariance():
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2)))[0]
    strengths = torch.tensor([4.0, 3.0, 0.5, 0.1, 0.1, 0.1])
    x = torch.randn(2, 4000, 6) * strengths @ basis.t() + 5
    down = candidate_adapters.FittedDown(6, 3)
    y = down(x).flatten(0, 1)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    # A tenth of the mean variance (16 + 9 + 0.25 + 0.03) / 6 is 0.4213, above only 0.5².
    expected = torch.tensor([0.25 / 0.4213, 1.0, 1.0]).diag()  # ascending
    torch.testing.assert_close(y.t().cov(), expected, rtol=0, atol=5e-2)
    assert [name for name, _ in down.named_parameters()] == ["bias"]
    first = down.weight.clone()
    down(torch.randn(2, 50, 6))
    assert torch.equal(down.weight, first)


@pytest.mark.parametrize(
    ("form", "kind", "norm"),
    [
        ("parallel", candidate_highways.StageHighway, True),
        ("chain", candidate_highways.DetachedHighway, True),
        ("chain", candidate_highways.TapNormHighway, False),
    ],
)
def test_a_frozen_projection_keeps_only_maps_of_the_rank(form, kind, norm):
    batch, size, dim, rank = 2, 6, 64, 4
    make = candidate_adapters.fitted(norm=norm)
    highway = kind(
        (dim,), (3,), {"form": form}, make_adapter=lambda d: make(d, rank), out_stages=[0]
    )
    for parameter in highway.parameters():
        nn.init.normal_(parameter)
    taps = [torch.randn(batch, size * size, dim) for _ in range(3)]
    stage = StageOutput(0, [], taps, taps[-1], None, size, size)
    h = torch.zeros(batch, size * size, dim, requires_grad=True)
    with track_saved_bytes(highway, {"highway": highway}) as saved:
        highway.run_stage(stage, h).sum().backward()
    # For each adapter the input of K, of GELU and of U, and at most two numbers a token.
    assert 0 < saved.total <= 3 * batch * size * size * (3 * rank + 2) * 4
