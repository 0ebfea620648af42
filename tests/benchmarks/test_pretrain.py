"""The pretraining goes on where it was stopped, and its batches and splits are what they should be.

The teacher is a small one without downloaded weights, which only has to give maps and logits.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from e3va.torchvision.models import read_trunk
from e3va.weights.checkpoint import load_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COLORS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}  # by class
CHANNELS = (2, 1, 0)  # the brightest channel of each class
IMAGES = 20  # of each class


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("pretrain")

    class SmallTeacher(nn.Module):
        def __init__(self, device):
            super().__init__()
            dims = module.TEACHER_DIMS
            torch.manual_seed(7)
            sizes = zip(dims, (4, 8, 16, 32), strict=True)
            self.maps = nn.ModuleList(nn.Conv2d(3, dim, side, side) for dim, side in sizes)
            self.logits = nn.Linear(dims[-1], module.IMAGENET_CLASSES)

        def standardize(self, images):
            """Leave the maps unchanged."""

        @torch.no_grad()
        def forward(self, images):
            maps = [layer(images) for layer in self.maps]
            return maps, self.logits(maps[-1].mean((2, 3)))

    monkeypatch.setattr(module, "Teacher", SmallTeacher)
    monkeypatch.setattr(module, "KINDS", ((32, 1, 4, 0.5), (32, 2, 4, 0.5)))
    return module


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(IMAGES):
            Image.new("RGB", (40, 30), color).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture
def run(pretrain, photographs, monkeypatch):
    """Runs the script and returns its exit status."""

    def call(output, *arguments):
        options = ("--images", photographs, "--preset", "swin_nano", "--output", output)
        monkeypatch.setattr(sys, "argv", ["pretrain", *map(str, (*options, *arguments))])
        return pretrain.main()

    return call


def test_a_stopped_run_ends_like_one_that_was_not(pretrain, run, tmp_path, monkeypatch):
    assert run(tmp_path / "whole", "--steps", 4) == 0
    original, calls = pretrain.Run._one_step, []

    def interrupted(self):
        if len(calls) == 2:
            self.save()
            raise KeyboardInterrupt
        calls.append(self.step)
        return original(self)

    monkeypatch.setattr(pretrain.Run, "_one_step", interrupted)
    assert run(tmp_path / "stopped", "--steps", 4) == 130
    monkeypatch.setattr(pretrain.Run, "_one_step", original)
    assert run(tmp_path / "stopped", "--steps", 4) == 0
    whole, stopped = (
        load_file(tmp_path / name / "trunk.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    untrained = pretrain.Student("swin_nano", 3).trunk.state_dict()
    assert any(not torch.equal(whole[name].float(), untrained[name]) for name in whole)


def test_the_file_is_a_trunk_with_its_accuracy(run, tmp_path, capsys):
    assert run(tmp_path / "out", "--steps", 1) == 0
    _, preset, _ = read_trunk(str(tmp_path / "out" / "trunk.safetensors"))
    assert (preset.embed_dim, preset.depths, preset.window) == (16, (2, 2, 2, 2), 4)
    assert "of 2 held-out photographs" in capsys.readouterr().out  # 60 photographs, every 50th


def test_photographs_that_are_held_out_are_not_trained_on(pretrain, photographs):
    train, held_out, names = pretrain.split(photographs)
    assert names == sorted(COLORS)
    assert len(train) == 58 and len(held_out) == 2
    assert not {path for path, _ in train} & {path for path, _ in held_out}


def test_montages_show_whole_photographs_and_single_ones_have_their_class(pretrain, photographs):
    train, _, _ = pretrain.split(photographs)
    found = {1: 0, 2: 0}
    for step in range(8):
        images, labels = pretrain.draw_batch(train, step)
        again, _ = pretrain.draw_batch(train, step)
        assert images.shape == (4, 3, 32, 32) and torch.equal(images, again)
        along = 2 if labels is None else 1
        found[along] += 1
        tiles = images.unflatten(3, (along, -1)).unflatten(2, (along, -1))
        assert tiles.std(dim=(3, 5)).max() < 1e-5  # one color in each
        if labels is not None:
            assert images.mean((2, 3)).argmax(1).tolist() == [CHANNELS[n] for n in labels]
    assert min(found.values()) > 0


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_folder_without_classes_is_one_line(pretrain, tmp_path, monkeypatch, capsys, kind):
    folder = tmp_path / "folder"
    if kind == "empty":
        folder.mkdir()
    monkeypatch.setattr(
        sys, "argv", ["pretrain", "--images", str(folder), "--output", str(tmp_path / "out")]
    )
    assert pretrain.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error:") and str(folder) in line
