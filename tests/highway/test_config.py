"""One config for all settings of a highway: recipes are data, mistakes are one line."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from torch import nn

from e3va import (
    RECIPES,
    E3VABackbone,
    Highway,
    HighwayConfig,
    SwinPreset,
    SwinTrunk,
    UserError,
    adapter_kinds,
    highway_config,
)
from e3va.highway.adapters.dual_low_rank import DualLowRankAdapter
from e3va.highway.config import (
    DOWNSAMPLE_FORMS,
    FORMS,
    OUTSIDE,
    as_highway_config,
    read_highway,
)
from e3va.swin.trunk import TAPS

TINY = SwinPreset(8, (2, 1, 2, 1), (1, 1, 2, 2), window=2, pretrain_size=32)


# --- recipes


def test_the_default_recipe_is_the_chain_of_conv_adapters():
    config = highway_config()
    assert config == HighwayConfig() == RECIPES["e3va_chain"]
    assert (config.adapter, config.form, config.taps) == ("conv", "chain", "block")
    assert config.downsample == "offset" and not config.train_trunk
    assert config.complete(96).options == {"rank": 36, "kernel": 5}


def test_the_wide_recipe_is_the_default_with_a_larger_rank():
    config = highway_config("e3va_wide").complete(96)
    assert config.options == {"rank": 128, "kernel": 5} and config.recipe == "e3va_wide"
    assert highway_config("e3va_wide").complete(192).options["rank"] == 256
    sizes = (96, 192), (2, 2)
    wide, same = (Highway(*sizes, c, out_stages=(0, 1)) for c in (config, {"rank": 128}))
    wide.load_state_dict(same.state_dict())


def test_the_recipe_e3va_is_the_papers_form():
    config = highway_config("e3va").complete(96)
    assert (config.adapter, config.form) == ("dual_low_rank", "parallel")
    assert (config.taps, config.downsample) == ("sublayer", "direct")
    assert config.options == {"rank": 16, "reduction": 4}
    adapter = config.adapter_factory(96)(192)
    assert type(adapter) is DualLowRankAdapter
    shapes = [tuple(p.shape) for p in adapter.parameters()]
    assert shapes == [(16, 192), (48, 16), (48,), (16, 48), (192, 16), (192,)]


def test_baselines_have_no_adapters():
    for name, trains in (("frozen", False), ("full", True)):
        config = highway_config(name)
        assert config.adapter is None and config.train_trunk is trains
        assert config.adapter_factory(96) is None and config.complete(96) == config
        assert str(config) == name
        # Form, taps and downsample have no effect without adapters, so they make no difference.
        changes = {"form": "parallel", "taps": "residual", "downsample": "direct"}
        assert highway_config(name, **changes) == config


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("changes", [{}, {"rank": 3}, {"taps": "residual"}])
def test_a_config_is_one_flat_dict_of_plain_values(name, changes):
    if RECIPES[name].adapter is None:
        changes = {}
    for config in (
        highway_config(name, **changes),
        highway_config(name, **changes).complete(32),
    ):
        data = json.loads(json.dumps(config.to_dict()))
        assert highway_config(**data) == config
        assert data.get("recipe", "custom") == config.recipe
        assert (config.recipe == name) == ("taps" not in changes)


def test_a_recipe_may_set_options(monkeypatch):
    thin = HighwayConfig(options={"rank": 2})
    monkeypatch.setitem(RECIPES, "thin", thin)
    config = highway_config("thin", kernel=3)
    assert config.options == {"rank": 2, "kernel": 3} and config.recipe == "thin"
    assert highway_config("thin", rank=5).options == {"rank": 5}
    assert highway_config("thin", rank=5).recipe == "e3va_chain"
    assert highway_config("thin", adapter="dual_low_rank", reduction=2).options == {"reduction": 2}
    assert highway_config(**config.complete(32).to_dict()) == config.complete(32)
    assert RECIPES["thin"].options == {"rank": 2}


def test_options_of_another_adapter_kind_are_dropped_with_it():
    config = highway_config("e3va", adapter="conv", rank=3).complete(32)
    assert config.options == {"rank": 3, "kernel": 5}
    assert (config.form, config.taps, config.recipe) == ("parallel", "sublayer", "custom")
    assert highway_config(**config.to_dict()) == config
    assert highway_config(adapter=None) == RECIPES["frozen"]


def test_a_config_is_a_value():
    options = {"rank": 3}
    config = HighwayConfig(options=options)
    options["rank"] = 4
    assert config.options == {"rank": 3}
    same = highway_config(rank=3)
    assert config == same and hash(config) == hash(same) and len({config, same}) == 1
    assert config != highway_config(rank=4)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert as_highway_config({"rank": 3}) == config and as_highway_config(config) is config


# --- mistakes


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"recipe": "e3va_chian"}, ["'e3va_chian'", "'e3va_chain'", "frozen"]),
        ({"adapter": "dual_low_rnk"}, ["'dual_low_rnk'", "'dual_low_rank'", "conv"]),
        ({"adapter": OUTSIDE}, [OUTSIDE, "make_adapter"]),
        ({"form": "chains"}, ["form 'chains'", "parallel"]),
        ({"taps": "residuals"}, ["taps 'residuals'", "did you mean 'residual'"]),
        ({"downsample": "ofset"}, ["downsample 'ofset'", "did you mean 'offset'"]),
        ({"tap": "block"}, ["'tap'", "did you mean 'taps'"]),
        ({"ranc": 3}, ["'conv'", "'ranc'", "did you mean 'rank'", "kernel"]),
        ({"reduction": 4}, ["'conv'", "'reduction'", "kernel"]),
        ({"recipe": "e3va", "adapter": "conv", "reduction": 4}, ["'conv'", "'reduction'"]),
        ({"recipe": "frozen", "rank": 4}, ["without adapters", "'rank'"]),
        ({"train_trunk": True}, ["train_trunk", "'conv'"]),
        ({"recipe": "full", "train_trunk": 1}, ["train_trunk 1"]),
        ({"shared": "no"}, ["shared 'no'"]),
        ({"rank": 0}, ["rank=0"]),
        ({"rank": -3}, ["rank=-3"]),
        ({"rank": 1025}, ["rank=1025", "1024"]),
        ({"rank": True}, ["rank=True"]),
        ({"rank": 2.5}, ["rank=2.5"]),
        ({"rank": "24"}, ["rank='24'"]),
        ({"rank": None}, ["rank=None"]),
        ({"rank": [3]}, ["rank=[3]"]),
        ({"kernel": 4}, ["kernel 4"]),
        ({"recipe": "e3va", "reduction": 3}, ["reduction 3", "8"]),
    ],
)
def test_a_mistake_is_one_line_with_its_value(settings, values):
    with pytest.raises(UserError) as caught:
        E3VABackbone(TINY, settings)
    assert "\n" not in str(caught.value)
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize("wrong", [3, None, ["e3va"], {1: "e3va"}])
def test_a_highway_of_another_type_is_refused(wrong):
    with pytest.raises(UserError):
        E3VABackbone(TINY, wrong)


# --- combinations


def small_options(adapter: str | None) -> dict:
    """Return options with which an adapter of the kind fits the 8 channels of ``TINY``."""
    defaults = adapter_kinds()[adapter].defaults if adapter else ()
    sizes = {"rank": 8, "reduction": 2}
    return {name: sizes[name] for name in sizes.keys() & defaults}


@pytest.mark.parametrize("adapter", [*adapter_kinds(), None])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("downsample", DOWNSAMPLE_FORMS)
@pytest.mark.parametrize("memory", ["standard", "plain"])
def test_every_combination_runs(adapter, form, taps, downsample, memory):
    settings = {"adapter": adapter, "form": form, "taps": taps, "downsample": downsample}
    backbone = E3VABackbone(TINY, settings | small_options(adapter), memory=memory)
    for parameter in backbone.highway.parameters():
        nn.init.normal_(parameter, std=0.3)
    outputs = backbone(torch.rand(1, 3, 33, 46))
    assert [tuple(o.shape) for o in outputs.values()] == [
        *((1, 8, 9, 12), (1, 16, 5, 6), (1, 32, 3, 3), (1, 64, 2, 2))
    ]
    sum((out * out.cos()).sum() for out in outputs.values()).backward()
    for name, parameter in backbone.named_parameters():
        trains = name.startswith("highway.")
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trains, name
    data = json.loads(json.dumps(backbone.config.highway.to_dict()))
    assert highway_config(**data) == backbone.config.highway


# --- modules from outside


class Gate(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, z, height, width):
        return z * self.gate


def test_a_module_factory_from_outside_is_the_adapter():
    backbone = E3VABackbone(TINY, {"recipe": "e3va", "rank": 2}, make_adapter=Gate)
    config = backbone.config.highway
    assert (config.adapter, config.form, config.taps) == (OUTSIDE, "parallel", "sublayer")
    assert type(backbone.highway.stages[0].msa[0]) is Gate
    sum(out.square().sum() for out in backbone(torch.rand(1, 3, 32, 32)).values()).backward()
    assert all(p.grad is not None for p in backbone.highway.parameters())


def test_a_highway_module_from_outside_is_the_highway():
    highway = Highway(TINY.dims, TINY.depths, {"rank": 2}, out_stages=(0, 1))
    backbone = E3VABackbone(TINY, highway, out_features=("p0", "p1"))
    assert backbone.highway is highway and backbone.config.highway == highway.config
    assert list(backbone(torch.rand(1, 3, 32, 32))) == ["p0", "p1"]
    with pytest.raises(UserError, match="make_adapter"):
        E3VABackbone(TINY, highway, make_adapter=Gate)


# --- files without a description


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rank": 5, "kernel": 3},
        {"recipe": "e3va"},
        {"recipe": "e3va", "rank": 2, "reduction": 2},
        {"recipe": "frozen"},
        {"taps": "residual"},
        {"recipe": "e3va", "taps": "block"},
        {"recipe": "e3va_wide"},
        {"recipe": "e3va_wide", "shared": True},
        {"shared": True, "taps": "residual", "rank": 5},
        {"adapter": "adaptformer", "rank": 5},
        {"adapter": "bottleneck", "rank": 5},
        {"adapter": "lora", "rank": 5},
        {"adapter": "lora", "rank": 5, "placement": "inside"},
        {"adapter": "mona", "rank": 5, "placement": "inside"},
        {"adapter": "colin", "rank": 4, "hidden": 6, "branches": 2, "kernel": 5},
        {"adapter": "conv_adapter", "reduction": 4, "kernel": 3},
        {"adapter": "krona", "rows": 4, "columns": 2, "residual": True},
        {"adapter": "krona"},
        {"adapter": "lorand", "rank": 3, "branches": 2, "reduction": 4},
        {"adapter": "mona", "rank": 6},
    ],
)
def test_a_config_is_read_off_the_tensors(settings):
    highway = Highway(TINY.dims, TINY.depths, settings)
    before = torch.get_rng_state()
    assert read_highway(highway.state_dict(), TINY.embed_dim) == highway.config
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_of_no_registered_kind_are_refused():
    state = Highway(TINY.dims, TINY.depths, make_adapter=Gate).state_dict()
    with pytest.raises(UserError, match="conv, .*dual_low_rank"):
        read_highway(state, TINY.embed_dim)
    wrong = Highway(TINY.dims, TINY.depths, {"rank": 2}).state_dict()
    wrong["stages.0.mlp.0.up.weight"] = torch.zeros(9, 2)
    with pytest.raises(UserError, match="conv, .*dual_low_rank"):
        read_highway(wrong, TINY.embed_dim)


def test_a_new_highway_of_every_kind_adds_nothing():
    trunk = SwinTrunk(TINY)
    stages = list(trunk.stages(torch.rand(1, 3, 40, 40), taps="residual"))
    for adapter, form in itertools.product(adapter_kinds(), FORMS):
        config = {"adapter": adapter, "form": form, "taps": "residual"} | small_options(adapter)
        if "zero_start" in adapter_kinds()[adapter].defaults:
            config["zero_start"] = True
        blocks = [layer.blocks for layer in trunk.layers]
        highway = Highway(TINY.dims, TINY.depths, config, blocks=blocks)
        outputs = highway(stages, trunk.patch_mergings)
        for out, stage in zip(outputs, stages, strict=True):
            expected = nn.functional.layer_norm(stage.out, stage.out.shape[-1:])
            assert torch.equal(out.flatten(2).transpose(1, 2), expected)
