"""What all tests share: whether Detectron2 is there, and drawn data in COCO format."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None
collect_ignore = [] if HAS_DETECTRON2 else ["detectron2"]
SKIPPED = (
    "The Detectron2 tests are SKIPPED: Detectron2 is not installed (it is on no package index; "
    "see https://detectron2.readthedocs.io/tutorials/install.html)"
)


def pytest_terminal_summary(terminalreporter):
    if not HAS_DETECTRON2:
        terminalreporter.write_line(SKIPPED, yellow=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads cost small models more than they bring, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "OMP_NUM_THREADS", "1")  # for the programs that tests start
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class DrawnData:
    """Pictures of rectangles with their COCO file: ``json``, ``images`` and the parsed ``data``."""

    def __init__(self, folder: Path):
        self.images = folder / "images"
        self.json = folder / "annotations.json"
        self.data: dict = {}

    def save(self) -> None:
        """Write ``data`` to ``json`` after a test has changed it."""
        self.json.write_text(json.dumps(self.data))


@pytest.fixture
def drawn(tmp_path) -> DrawnData:
    """Six pictures, landscape and portrait, of two rectangles each; category ids 3 and 7."""
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
