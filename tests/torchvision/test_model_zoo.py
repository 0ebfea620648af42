"""Models of this framework from the zoo."""

import pytest
import torch

from e3va import E3VABackbone, UserError
from e3va.adapter_files.files import save_adapter
from e3va.model_zoo.publish import publish
from e3va.torchvision import model_zoo


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """An empty folder as the zoo, and as the cache."""
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "zoo"


def same_weights(one, other) -> bool:
    want = other.state_dict()
    return all(torch.equal(value, want[key]) for key, value in one.state_dict().items())


def test_get_returns_a_model_by_its_name(zoo, make_trained, pretrained, tmp_path):
    _, model = make_trained("mask_rcnn", "fruit")
    publish(tmp_path / "fruit", "drawn", zoo, trunk=str(pretrained))
    for name in ("drawn", "e3va://drawn", "e3va://adapters/drawn"):
        loaded = model_zoo.get(name, device="cpu")
        assert same_weights(loaded, model) and not loaded.training
    fresh = model_zoo.get("drawn", trained=False, device="cpu")
    assert fresh.training and not same_weights(fresh, model)
    assert fresh.state_dict().keys() == model.state_dict().keys()


def test_names_of_other_things_give_one_line(zoo, pretrained, tmp_path):
    backbone = E3VABackbone("swin_nano")
    backbone.trunk.load_state_dict(torch.load(pretrained)["model"])
    model = torch.nn.ModuleDict({"backbone": backbone})
    about = {"framework": "detectron2", "model": {"config": "COCO/x.py"}}
    save_adapter(model, tmp_path / "output", **about)
    publish(tmp_path / "output", "other", zoo, trunk=str(pretrained))
    with pytest.raises(UserError, match="'other' is for detectron2.* torchvision"):
        model_zoo.get("other")
    with pytest.raises(UserError, match="'swin_mini'.*expected the name of"):
        model_zoo.get("swin_mini")
    with pytest.raises(UserError, match="'nothing'"):
        model_zoo.get("nothing")
