"""The format of adapter files: version 2 is read, others are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_tensors

import e3va
from e3va import E3VABackbone, SwinTrunk, UserError
from e3va.adapter_files.files import (
    CONFIG_FILE,
    MODEL_FILE,
    load_adapter,
    merge,
    read_adapter,
    read_config,
    save_adapter,
)
from e3va.swin.presets import SwinPreset
from e3va.weights.origin import fingerprint

from .conftest import Segmenter, trained


@pytest.mark.parametrize("version", [None, 1, 3, "2", [2]])
def test_files_of_another_version_are_refused(saved, version):
    _, folder = saved
    data = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**data, "format_version": version}))
    with pytest.raises(UserError) as caught:
        read_config(folder)
    assert repr(version) in caught.value.line and CONFIG_FILE in caught.value.line


def test_an_adapter_on_a_preset_that_the_library_no_longer_has(tmp_path):
    """Its file has the geometry too, which is enough with the trunk's own file."""
    torch_file = pytest.importorskip("safetensors.torch")
    geometry = SwinPreset(16, (2, 2, 2, 2), (1, 2, 4, 8), window=7)
    torch.manual_seed(3)
    trunk = SwinTrunk(geometry).state_dict()
    model = trained(trunk, preset=geometry)
    save_adapter(model, tmp_path)
    text = (tmp_path / CONFIG_FILE).read_text()
    assert '"preset": ""' in text
    text = text.replace('"preset": ""', '"preset": "swin_micro"')
    state = load_tensors(tmp_path / MODEL_FILE)
    torch_file.save_file(state, tmp_path / MODEL_FILE, metadata={"e3va_adapter": text})
    (tmp_path / CONFIG_FILE).write_text(text)
    state, config = read_adapter(tmp_path)
    assert config.backbone.preset == geometry
    whole = merge(state, config, trunk, "swin_micro.pth")
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())
    other = Segmenter(preset=config.backbone.preset, highway=config.backbone.highway)
    other.backbone.bottom_up.trunk.load_state_dict(trunk)
    load_adapter(other, tmp_path)
    images = torch.rand(1, 3, 50, 33)
    assert torch.equal(other.eval()(images), model(images))


def test_the_shipped_adapter_is_of_the_current_version():
    folder = Path(e3va.__file__).parent / "assets/adapters/drawn_things"
    state, config = read_adapter(folder)
    expected = {**json.loads(json.dumps(config.to_dict())), "weights": fingerprint(state)}
    assert json.loads((folder / CONFIG_FILE).read_text()) == expected
    highway = {k: v for k, v in state.items() if k.startswith("backbone.bottom_up.highway.")}
    own = E3VABackbone("swin_mini", config.backbone.highway).highway.state_dict()
    assert [k.removeprefix("backbone.bottom_up.highway.") for k in highway] == sorted(own)
    assert config.backbone.highway.recipe == "e3va_chain"
