"""Configs and published adapters by name, without a framework."""

from pathlib import Path

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, UserError
from e3va.adapter_files.files import CONFIG_FILE, MODEL_FILE, read_config, save_adapter
from e3va.model_zoo import get_checkpoint_url, get_config_file, local_path, models
from e3va.model_zoo.models import find_adapter_row
from e3va.model_zoo.publish import publish

CONFIG = "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"


def test_config_files():
    file = Path(get_config_file(CONFIG))
    assert file.is_file() and file.as_posix().endswith(f"configs/{CONFIG}")
    yaml = get_config_file("COCO/cascade_mask_rcnn_e3va_swin_t.yaml")
    assert "E3VA" in Path(yaml).read_text()
    with pytest.raises(UserError, match=f"nearest: .*{CONFIG}"):
        get_config_file("COCO/cascade_mask_rcnn_e3va_swin_t_2x.py")


@pytest.mark.parametrize(
    "name", ["../setup.py", "/etc/passwd", "COCO/../../setup.py", "", "COCO", "a\0.py", "COCO/x.py"]
)
def test_no_config_outside_the_folder(name):
    with pytest.raises(UserError, match=str(models.CONFIG_ROOT)) as caught:
        get_config_file(name)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "outside.py").write_text("")
    (tmp_path / "configs" / "inside.py").symlink_to(tmp_path / "outside.py")
    monkeypatch.setattr(models, "CONFIG_ROOT", tmp_path / "configs")
    with pytest.raises(UserError, match="inside.py"):
        get_config_file("inside.py")


def test_a_config_without_an_adapter():
    with pytest.raises(UserError, match="COCO/cascade_mask_rcnn_e3va_swin_l_3x.py yet"):
        get_checkpoint_url("COCO/cascade_mask_rcnn_e3va_swin_l_3x.py")
    with pytest.raises(UserError, match="COCO/nothing.py"):
        get_checkpoint_url("COCO/nothing.py")


def test_names_that_are_not_adapters():
    with pytest.raises(UserError, match="'swin_mini' is not an adapter"):
        find_adapter_row("swin_mini")
    with pytest.raises(UserError, match="no 'nothing'"):
        find_adapter_row("nothing")
    with pytest.raises(UserError, match="'e3va://adapters' is not an adapter"):
        find_adapter_row("e3va://adapters")


@pytest.fixture
def zoo(tmp_path, monkeypatch) -> Path:
    """A zoo with an adapter for ``CONFIG`` and one of torchvision."""
    model = nn.ModuleDict({"backbone": E3VABackbone("swin_nano"), "head": nn.Linear(4, 2)})
    trunk = tmp_path / "nano_trunk.pth"
    torch.save({"model": model["backbone"].trunk.state_dict()}, trunk)
    for name, framework, about in (
        ("things", "detectron2", {"config": CONFIG}),
        ("drawn", "torchvision", {"model": "mask_rcnn"}),
    ):
        output = tmp_path / name
        save_adapter(model, output, framework=framework, model=about, classes=("red", "blue"))
        publish(output, name, tmp_path / "zoo", trunk=str(trunk))
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path / "zoo"))
    return tmp_path / "zoo"


def test_published_adapters_by_config_and_name(zoo):
    address = "e3va://adapters/things/model_final.pth"
    assert get_checkpoint_url(CONFIG) == address
    assert find_adapter_row(address).config == CONFIG
    for name in ("drawn", "e3va://drawn", "e3va://adapters/drawn", "e3va://adapters/drawn/"):
        row = find_adapter_row(name)
        assert (row.framework, row.config, row.trunk) == ("torchvision", "mask_rcnn", "nano_trunk")
        assert row.address == "e3va://adapters/drawn"


def test_a_description_needs_only_the_small_file(zoo):
    (zoo / "adapters" / "drawn" / MODEL_FILE).unlink()
    address = f"e3va://drawn/{CONFIG_FILE}"
    config = read_config(local_path(address))
    assert config.classes == ("red", "blue") and config.framework == "torchvision"
    (zoo / "adapters" / "drawn" / CONFIG_FILE).write_text("{}")
    with pytest.raises(UserError, match=CONFIG_FILE):
        local_path(address)


def test_two_adapters_of_one_config(zoo, tmp_path):
    publish(tmp_path / "things", "second", zoo, trunk="nano_trunk")
    with pytest.raises(UserError, match="things, second"):
        get_checkpoint_url(CONFIG)
