"""Addresses on the hub wherever a command or a function takes a trunk or an adapter."""

from pathlib import Path

import pytest
import torch

from e3va.adapter_files.files import read_adapter, read_config, save_adapter
from e3va.cli.arguments import names_of
from e3va.cli.main import main
from e3va.model_zoo.hub import fetch
from e3va.torchvision import load_adapters
from e3va.torchvision.loading import load_model

CONFIG = "ADE20K/semantic_fpn_e3va_swin_t_80k.py"
TINY = ["--highway", "rank=4", "--size", "48", "--steps", "1"]


@pytest.fixture
def swin(hub, weights) -> str:
    """The address of the trunk with its commit."""
    return (
        f"hf://user/swin@{hub.add('user/swin', {'model.safetensors': weights})}/model.safetensors"
    )


@pytest.fixture
def train(drawn, drawn_labels, tmp_path):
    """Trains a model for label maps with further arguments, and returns the output folder."""

    def run(name: str, *arguments: str) -> Path:
        data = ["--images", str(drawn.images), "--labels", str(drawn_labels)]
        assert main(["train", *data, "--output", str(tmp_path / name), *TINY, *arguments]) == 0
        return tmp_path / name

    return run


def upload(hub, name: str, folder: Path) -> str:
    files = ("adapter_model.safetensors", "adapter_config.json")
    return hub.add(name, {file: (folder / file).read_bytes() for file in files})


def test_the_command_from_training_to_prediction(hub, swin, train, drawn, tmp_path, capsys):
    """The files of a training name the trunk with its commit, and so it is found again."""
    output = train("fruit", "--trunk", "hf://user/swin")
    about = read_config(output)
    assert about.trunk.source == about.model["trunk"] == swin
    upload(hub, "user/fruit", output)
    hub.add("user/swin", {"model.safetensors": b"other"})  # a new trunk under the old name
    expected, config = load_model(output / "model.pth")
    assert config.trunk == swin
    models = load_adapters({"fruit": "hf://user/fruit", "again": str(output)})
    image = torch.rand(3, 48, 48)
    (wanted,) = expected([image])
    for name in ("fruit", "again"):
        (found,) = models.set_adapter(name)([image])
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    pictures = tmp_path / "pictures"
    paths = ["--input", str(drawn.images / "1.png"), "--output", str(pictures)]
    assert main(["predict", "hf://user/fruit", *paths]) == 0 and list(pictures.glob("1*"))
    second = train("second", "--adapter", "hf://user/fruit")
    assert read_config(second).trunk.source == swin
    whole, back = str(tmp_path / "whole.pth"), str(tmp_path / "back")
    assert main(["convert", "hf://user/fruit", "--output", whole]) == 0
    assert main(["convert", whole, "--output", back, "--trunk", swin]) == 0
    (one, first), (other, last) = read_adapter(output), read_adapter(back)
    assert first.trunk == last.trunk and all(torch.equal(one[key], other[key]) for key in one)


def test_names_of_several_adapters():
    paths = ["hf://user/fruit@v1", "hf://user/v1.0", "hf://user/nuts/adapter_model.safetensors"]
    assert list(names_of(paths)) == ["fruit", "v1.0", "nuts"]


def test_detectron2(hub, swin, tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.config import instantiate

    from e3va.detectron2 import LazyPredictor, describe, load_config
    from e3va.detectron2.checkpoint import HighwayCheckpointer

    preset = "model.backbone.bottom_up.preset=swin_nano"
    small = ["model.sem_seg_head.conv_dims=32", "train.device=cpu"]
    cfg = load_config(CONFIG, [preset, *small])
    models = [instantiate(cfg.model) for _ in range(3)]
    for model, address in zip(
        models, ("hf://user/swin", swin, "hf://user/swin?matching_heuristics=True"), strict=True
    ):
        HighwayCheckpointer(model).load(address)
        assert model.backbone.bottom_up.trunk.origin.source == swin
    save_adapter(models[0], tmp_path / "fruit", **describe.describe_config(cfg))
    upload(hub, "user/fruit", tmp_path / "fruit")
    predictor = LazyPredictor(weights="hf://user/fruit", overrides=small)
    found, expected = predictor.model.state_dict(), models[0].state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    predictor.load_adapter("again", "hf://user/fruit", overrides=small)
    assert predictor.names == ["default", "again"]


@pytest.mark.slow
def test_the_environment_of_the_command(hub, command, swin, token, monkeypatch):
    """Endpoint, token and offline mode are huggingface_hub's; a failure is one line."""
    hub.repos["user/swin"].private = True
    result = command("zoo", "get", "hf://user/swin", HF_TOKEN="hf_wrongwrong")
    assert result.returncode == 1 and result.stdout == "" and "wrong" not in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "HF_TOKEN" in result.stderr
    assert hub.requests[-1][-1] == "Bearer hf_wrongwrong"
    monkeypatch.setenv("HF_TOKEN", token)
    fetch("hf://user/swin")  # into the same cache
    hub.requests.clear()
    result = command("zoo", "get", "hf://user/swin", HF_HUB_OFFLINE="1")
    assert result.returncode == 0 and hub.requests == []
    assert Path(result.stdout.strip()).name == "model.safetensors"
    assert swin in result.stderr and token not in result.stdout + result.stderr
