"""Fixtures for all tests: drawn data and models of a few kilobytes."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from e3va import SwinTrunk, get_preset
from e3va.data.coco import ReadOptions
from e3va.torchvision import ModelConfig, build_model, load_pretrained
from e3va.torchvision.data import Dataset, coco_dataset, label_dataset
from e3va.torchvision.evaluate import Scores
from e3va.torchvision.lean import prepare_model
from e3va.torchvision.trainer import Trainer, TrainSettings

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
collect_ignore = [] if HAS_DETECTRON2 else ["detectron2"]
RANK_4 = {"recipe": "e3va_chain", "rank": 4}
SKIPPED = (
    "The Detectron2 tests are SKIPPED: Detectron2 is not installed (it is on no package index; "
    "see https://detectron2.readthedocs.io/tutorials/install.html)"
)


def pytest_terminal_summary(terminalreporter):
    if not HAS_DETECTRON2:
        terminalreporter.write_line(SKIPPED, yellow=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Run on one thread: small models are slower with several, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")  # for the programs that tests start
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_report(request, monkeypatch):
    """Let trainings write no page, which takes a second, but where pages are tested."""
    if request.path.name != "test_report.py":
        monkeypatch.setattr("e3va.cli.train._report", lambda folder, trainer: None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class DrawnData:
    """Pictures of rectangles in ``images`` and their COCO file ``json``, parsed in ``data``."""

    def __init__(self, folder: Path):
        self.images = folder / "images"
        self.json = folder / "annotations.json"
        self.data: dict = {}

    def save(self) -> None:
        """Write ``data`` to ``json`` after a test has changed it."""
        self.json.write_text(json.dumps(self.data))


@pytest.fixture
def drawn(tmp_path) -> DrawnData:
    """Return six pictures, landscape and portrait, of two rectangles each; category ids 3, 7."""
    return draw_data(tmp_path / "drawn")


def draw_data(folder: Path) -> DrawnData:
    result = DrawnData(folder)
    result.images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 7):
        width, height = (96, 80) if image_id % 2 else (80, 96)
        picture = Image.fromarray(rng.integers(90, 130, (height, width, 3), dtype=np.uint8))
        name = f"{image_id}.png"
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for x, category in ((8, 3), (44, 7)):
            box = [x, int(rng.integers(5, 30)), 28, 40]
            x1, y1 = box[0] + box[2], box[1] + box[3]
            colour = (220, 40, 40) if category == 3 else (40, 60, 220)
            ImageDraw.Draw(picture).rectangle([box[0], box[1], x1 - 1, y1 - 1], fill=colour)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [[box[0], box[1], x1, box[1], x1, y1, box[0], y1]],
                }
            )
        picture.save(result.images / name)
    categories = [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}]
    result.data = {"images": images, "annotations": annotations, "categories": categories}
    result.save()
    return result


@pytest.fixture
def drawn_labels(drawn):
    """Return a folder of label maps: 0 background, 1 red, 2 blue, 255 at a corner."""
    folder = drawn.images.parent / "labels"
    folder.mkdir()
    for image in drawn.data["images"]:
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for a in drawn.data["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                labels[y : y + h, x : x + w] = {3: 1, 7: 2}[a["category_id"]]
        labels[0, 0] = 255
        Image.fromarray(labels).save(folder / image["file_name"])
    return folder


@pytest.fixture
def instances(drawn):
    return coco_dataset(str(drawn.json), str(drawn.images), ReadOptions(training=True))


@pytest.fixture
def label_maps(drawn, drawn_labels):
    return label_dataset(str(drawn.images), str(drawn_labels))


def small_config(model: str, classes: tuple[str, ...] = ("red", "blue"), **changes) -> ModelConfig:
    ids = () if model == "semantic_fpn" else tuple(range(1, len(classes) + 1))
    options = {"heads": "light", "size": 64, "max_size": 96, "trunk": "random", "highway": RANK_4}
    options |= {"category_ids": ids, **changes}
    return ModelConfig(model, classes, get_preset("swin_nano"), **options)


@pytest.fixture
def make_small():
    """Return a function that builds (config, model) of a kind with random weights, seed 0."""

    def make(model: str, **changes):
        config = small_config(model, **changes)
        torch.manual_seed(0)
        return config, build_model(config)

    return make


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """Return a file of weights for a trunk of the size of ``small_config``."""
    return write_trunk(tmp_path / "swin.pth", seed=5)


def write_trunk(path: Path, seed: int, preset: str = "swin_nano") -> Path:
    """Write random weights of a Swin in the official layout."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(value.shape, generator=generator) / 8
        for name, value in SwinTrunk(preset).state_dict().items()
    }
    torch.save({"model": state}, path)
    return path


@pytest.fixture
def make_trained(make_small, pretrained, tmp_path):
    """Return a function that writes the files of a trained model and returns (config, model)."""

    def make(kind: str, name: str, mixed: bool = False, **changes):
        seed = len(name)
        config, model = make_small(kind, trunk=str(pretrained), **changes)
        load_pretrained(model, str(pretrained))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(noise, alpha=0.05)
        prepare_model(model, mixed)
        dataset = Dataset([], config.classes, read_target=dict, summary=f"{tmp_path}/x: 4 images")
        data = {"summary": dataset.summary}
        trainer = Trainer(model, config, TrainSettings(), dataset, tmp_path / name, data=data)
        trainer.step = 7
        trainer.scores = Scores({"AP mask": 12.5, "AP box": float("nan")})
        trainer.save()
        trainer.save_model()
        return config, model.eval()

    return make
