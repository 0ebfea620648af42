"""The drawn pictures: what the files say is what the pictures show."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e3va import PRESETS
from e3va.torchvision.models import read_trunk

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


NAMES = ("drawing", "land", "pretrain", "things")


@pytest.fixture(scope="module")
def scripts():
    """The modules of ``NAMES``."""
    sys.path.insert(0, str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(BENCHMARKS))


def test_cover_is_the_area_of_the_polygon(scripts):
    drawing = scripts["drawing"]
    square = np.array([[10.0, 20.0], [42.5, 20.0], [42.5, 50.5], [10.0, 50.5]])
    assert drawing.cover(square, 64).sum() == pytest.approx(32.5 * 30.5, rel=0.03)
    disc = drawing.Pose((32, 32), 20).place(drawing.circle(100))
    assert drawing.cover(disc, 64).sum() == pytest.approx(np.pi * 400, rel=0.03)
    assert 0 < drawing.stroke(square, 64, 2).sum() < 2 * 130 * 1.2


def test_things_are_repeatable_and_their_files_agree(scripts, tmp_path):
    things = scripts["things"]
    for folder in ("one", "other"):
        things.draw_data(tmp_path / folder, {"train": 6, "val": 2}, size=96)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 2 * (6 + 2) + 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    data = json.loads((tmp_path / "one" / "train.json").read_text())
    for image in data["images"]:
        labels = np.asarray(Image.open(tmp_path / "one" / "train_labels" / image["file_name"]))
        shown = np.zeros_like(labels)
        for a in (a for a in data["annotations"] if a["image_id"] == image["id"]):
            mask = pycocotools.mask.decode(a["segmentation"]).astype(bool)
            assert not shown[mask].any()  # what is hidden belongs to another
            shown[mask] = a["category_id"]
            rows, columns = mask.nonzero()
            x, y, w, h = a["bbox"]
            assert (x, y) == (columns.min(), rows.min()) and a["area"] == mask.sum() > 0
            assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)
        assert np.array_equal(shown, labels)


def test_land_is_repeatable_and_shows_every_class(scripts, tmp_path):
    land = scripts["land"]
    for folder in ("one", "other"):
        land.draw_data(tmp_path / folder, {"train": 6, "test": 2}, size=96)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 2 * (6 + 2)
    seen = set()
    for file in files:
        content = (tmp_path / "one" / file).read_bytes()
        assert content == (tmp_path / "other" / file).read_bytes()
        if "_labels" in file.parts[0]:
            seen |= set(np.unique(np.asarray(Image.open(tmp_path / "one" / file))))
    assert seen == set(range(len(land.CLASSES)))


def test_no_class_of_the_things_was_pretrained_on(scripts):
    assert not set(scripts["things"].CLASSES) & set(scripts["pretrain"].KINDS)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_pretraining_targets_against_a_brute_force(scripts, seed):
    pretrain = scripts["pretrain"]
    number = torch.randint(0, 4, (2, 9, 9), generator=torch.Generator().manual_seed(seed))
    offset, rim = pretrain.targets(torch.zeros_like(number), number)
    for b in range(2):
        for shape in number[b].unique():
            places = (number[b] == shape).nonzero().double()
            middle = places.mean(0)
            for y, x in places.long().tolist():
                expected = (middle - torch.tensor([y, x])) / len(places) ** 0.5
                got = offset[b, :, y, x].flip(0).double()  # x first
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
                around = number[b, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                assert rim[b, y, x] == (around != shape).any()


def test_pretraining_writes_a_trunk(scripts, tmp_path, monkeypatch):
    pretrain = scripts["pretrain"]
    output = tmp_path / "trunk.safetensors"
    arguments = ["--preset", "swin_nano", "--pictures", "4", "--size", "64", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments, "--output", str(output)])
    drawn = [pretrain.draw_picture(64, np.random.default_rng(i)) for i in range(4)]
    pictures = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    monkeypatch.setattr(pretrain, "draw_pictures", lambda *_: pictures)  # no processes in a test
    pretrain.main()
    state, preset, _ = read_trunk(str(output))
    assert preset.dims == PRESETS["swin_nano"].dims
    assert all(t.dtype == torch.float16 for t in state.values())
