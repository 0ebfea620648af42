"""A new adapter kind needs one call, and works wherever the library's own kinds do."""

import json

import pytest
import torch
from torch import nn

import e3va
from e3va import E3VABackbone, UserError, highway_config, register_adapter_kind
from e3va.adapter_files.description import AdapterConfig, describe_model
from e3va.adapter_files.files import (
    CONFIG_FILE,
    load_adapter,
    read_adapter,
    read_config,
    save_adapter,
)
from e3va.highway import registry
from e3va.highway.config import read_highway


class LinearAdapter(nn.Module):
    """A bottleneck without bias, with an option of each type."""

    def __init__(
        self,
        dim: int,
        width: int = 4,
        scale: float = 1.0,
        activation: str = "relu",
        tied: bool = False,
        groups: int = 0,
    ):
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise UserError(f"adapter activation {activation!r}: expected relu or gelu")
        self.down = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(width, dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale, self.activation = scale, getattr(nn.functional, activation)

    def forward(self, z, height, width):
        return self.scale * self.up(self.activation(self.down(z)))


@pytest.fixture
def linear(monkeypatch):
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    register_adapter_kind(
        "linear",
        LinearAdapter,
        source="arXiv 1902.00751",
        defaults={"width": lambda embed_dim: embed_dim // 4},
        read_options=lambda tensors: {"width": len(tensors["down.weight"])},
    )


def test_a_new_kind_works_everywhere(linear, tmp_path):
    kind = e3va.adapter_kinds()["linear"]
    assert kind.source == "arXiv 1902.00751" and kind.module is LinearAdapter
    backbone = E3VABackbone("swin_nano", {"adapter": "linear", "taps": "residual", "scale": 2})
    config = backbone.config.highway
    assert config.options == {
        **{"width": 4, "scale": 2.0, "activation": "relu", "tied": False, "groups": 0}
    }
    assert type(backbone.highway.stages[2].msa[1]) is LinearAdapter
    data = json.loads(json.dumps(config.to_dict()))
    assert highway_config(**data) == config and "linear" in str(config)
    outputs = backbone(torch.rand(1, 3, 40, 40))
    sum(out.square().sum() for out in outputs.values()).backward()
    assert backbone.highway.stages[0].mlp[0].up.weight.grad.any()

    nn.init.normal_(backbone.highway.stages[0].mlp[0].up.weight)
    save_adapter(backbone, tmp_path / "adapter")
    state, description = read_adapter(tmp_path / "adapter")
    assert description.backbone.highway == config
    other = E3VABackbone("swin_nano", description.backbone.highway, trunk=backbone.trunk)
    load_adapter(other, tmp_path / "adapter")
    images = torch.rand(1, 3, 30, 50)
    for one, two in zip(backbone(images).values(), other(images).values(), strict=True):
        assert torch.equal(one, two)
    for wrong in ({}, {"adapter": "linear", "taps": "residual", "scale": 3.0}):
        with pytest.raises(UserError) as caught:
            load_adapter(E3VABackbone("swin_nano", wrong), tmp_path / "adapter", any_trunk=True)
        values = ("linear", "conv") if not wrong else ("scale 2.0", "3.0")
        assert all(value in caught.value.line for value in values)


def test_an_adapter_file_of_a_kind_that_is_not_registered_is_refused(linear, tmp_path):
    save_adapter(E3VABackbone("swin_nano", {"adapter": "linear"}), tmp_path)
    assert read_config(tmp_path).backbone.highway.adapter == "linear"
    del registry._KINDS["linear"]
    with pytest.raises(UserError) as caught:
        read_config(tmp_path)
    assert "'linear'" in caught.value.line and str(tmp_path / CONFIG_FILE) in caught.value.line
    assert "dual_low_rank" in caught.value.line


def test_an_adapter_file_of_modules_from_outside_is_refused(tmp_path):
    backbone = E3VABackbone("swin_nano", make_adapter=LinearAdapter)
    with pytest.raises(UserError, match="register_adapter_kind"):
        save_adapter(backbone, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    data = json.loads(json.dumps(describe_model(E3VABackbone("swin_nano")).to_dict()))
    data["backbone"]["highway"] = backbone.config.highway.to_dict()
    with pytest.raises(UserError, match="register_adapter_kind"):
        AdapterConfig.from_dict(data, "file")


def test_options_are_read_off_tensors_of_a_new_kind(linear):
    backbone = E3VABackbone("swin_nano", {"adapter": "linear", "width": 7})
    config = read_highway(backbone.highway.state_dict(), 16)
    assert (config.adapter, config.options["width"], config.taps) == ("linear", 7, "block")


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"scale": "2"}, ["scale='2'"]),
        ({"scale": float("nan")}, ["scale=nan"]),
        ({"tied": 1}, ["tied=1", "true or false"]),
        ({"activation": 3}, ["activation=3"]),
        ({"activation": "tanh"}, ["'tanh'"]),
        ({"groups": -1}, ["groups=-1", "from 0"]),
        ({"width": 0}, ["width=0", "from 1"]),
    ],
)
def test_options_have_the_type_of_their_default(linear, settings, values):
    with pytest.raises(UserError) as caught:
        E3VABackbone("swin_nano", {"adapter": "linear", **settings})
    assert all(value in caught.value.line for value in values)


def test_a_wrong_registration_is_refused(linear):
    before = e3va.adapter_kinds()

    def without_default(dim, rank):
        return nn.Linear(dim, rank)

    def with_a_settings_name(dim, taps="block"):
        return nn.Linear(dim, dim)

    def with_an_object(dim, size=None):
        return nn.Linear(dim, dim)

    for name, module, settings, value in (
        ("linear", LinearAdapter, {}, "linear"),
        ("new", without_default, {}, "rank"),
        ("new", with_a_settings_name, {}, "taps"),
        ("new", with_an_object, {}, "size"),
        ("new", LinearAdapter, {"defaults": {"depth": 3}}, "depth"),
    ):
        with pytest.raises(ValueError, match=value):
            register_adapter_kind(name, module, source="", **settings)
    assert e3va.adapter_kinds() == before
