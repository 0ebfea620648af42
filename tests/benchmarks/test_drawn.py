"""The drawn pictures: what the files say is what the pictures show."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


NAMES = ("drawing", "land", "things")


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
