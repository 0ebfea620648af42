"""Models small enough to train in a test, and drawn label maps."""

import numpy as np
import pytest
import torch
from PIL import Image

from e3va import get_preset
from e3va.torchvision import ModelConfig, build_model
from e3va.torchvision.data import coco_dataset, label_dataset


@pytest.fixture
def drawn_labels(drawn):
    """Folder of label maps for the drawn pictures: 0 background, 1 red, 2 blue, 255 at a corner."""
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
    return coco_dataset(str(drawn.json), str(drawn.images), training=True)


@pytest.fixture
def label_maps(drawn, drawn_labels):
    return label_dataset(str(drawn.images), str(drawn_labels))


def small_config(model: str, classes: tuple[str, ...] = ("red", "blue"), **changes) -> ModelConfig:
    options = {"rank": 4, "heads": "light", "size": 64, "max_size": 96, **changes}
    ids = () if model == "semantic_fpn" else tuple(range(1, len(classes) + 1))
    return ModelConfig(
        model, classes, get_preset("swin_nano"), "random", category_ids=ids, **options
    )


@pytest.fixture
def make_small():
    """(config, model) of a kind, with random weights from seed 0."""

    def make(model: str, **changes):
        config = small_config(model, **changes)
        torch.manual_seed(0)
        return config, build_model(config)

    return make
