"""A user's own label maps: classes, mistakes, and pixels that training uses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from e3va.detectron2 import engine, load_config

from .test_semantic import CONFIG, arguments

COLORS = {0: (110, 110, 110), 1: (220, 40, 40), 2: (40, 60, 220)}  # about, of the drawn pictures


def test_maps_with_few_labelled_pixels_train(label_overrides, maps):
    for path in maps.iterdir():
        labels = np.array(Image.open(path))
        labels[:], labels[:9], labels[:4] = 255, 1, 2
        Image.fromarray(labels).save(path)
    changes = ["train.max_iter=6", "data.train.short_edge=[96]", "data.train.crop=[32,32]"]
    cfg = engine.prepare(load_config(CONFIG, [*label_overrides, *changes]))
    losses = [v for v, _ in engine.train(cfg).storage.history("total_loss").values()]
    assert np.isfinite(losses).all() and 0 in losses


def test_classes_without_names_come_from_the_maps(label_overrides):
    cfg = load_config(CONFIG, [o for o in label_overrides if not o.startswith("data.classes")])
    assert instantiate(cfg.model).sem_seg_head.predictor.out_channels == 3
    engine.prepare(cfg)
    assert list(cfg.data.classes) == ["class 0", "class 1", "class 2"]
    assert cfg.model.sem_seg_head.num_classes == 3


def spoil(kind: str, maps: Path, images: Path) -> None:
    if kind == "no map":
        (maps / "2.png").unlink()
    elif kind == "colors":
        Image.new("RGB", (80, 96), (1, 2, 3)).save(maps / "2.png")
    elif kind == "other size":
        Image.new("L", (81, 96)).save(maps / "2.png")
    elif kind == "label":
        Image.new("L", (80, 96), 3).save(maps / "2.png")
    elif kind == "image":
        (images / "2.png").write_bytes((images / "2.png").read_bytes()[:900])


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("no map", (), "2.png has no label map"),
        ("colors", (), "2.png has Pillow's mode RGB"),
        ("other size", (), "2.png is 81×96, its image"),
        ("label", (), "2.png has the label 3, but the classes are 0 to 2 (ground, red, blue)"),
        ("image", (), "2.png cannot be read"),
        ("", ["data.classes=ground"], "data.classes=ground: expected a list of names"),
        ("", ["data.classes=[a,b,a]"], "data.classes has a twice"),
        ("", ["data.classes=[a,b]"], "has the label 2, but the classes are 0 to 1 (a, b)"),
        ("", ["data.train.labels="], "data.train.labels is not given"),
        ("", ["data.val.images="], "data.val.images is not given"),
        ("", ["data.val.labels=nowhere"], "no folder nowhere: expected a folder of label maps"),
    ],
)
def test_mistakes_are_one_line_with_the_file(label_overrides, maps, drawn, kind, change, message):
    spoil(kind, maps, drawn.images)
    with pytest.raises(SystemExit) as caught:
        engine.run(arguments(*label_overrides, *change, "train.max_iter=6"))
    line = str(caught.value.code)
    assert line.startswith("error: ") and message in line and "\n" not in line


def test_image_and_labels_are_changed_alike(label_overrides):
    """Resized, cropped, flipped: the label of a pixel is still that of its colour."""
    cfg = load_config(CONFIG, label_overrides)
    loader = iter(instantiate(cfg.dataloader.train))
    colors = torch.tensor([COLORS[k] for k in range(3)]).float()
    for _ in range(8):
        for example in next(loader):
            assert example["image"].shape == (3, 64, 64) and example["image"].dtype == torch.uint8
            assert example["sem_seg"].shape == (64, 64) and example["sem_seg"].dtype == torch.int64
            distance = (example["image"].float()[None] - colors[:, :, None, None]).norm(dim=1)
            known = example["sem_seg"] != 255
            agree = (distance.argmin(dim=0) == example["sem_seg"])[known]
            assert agree.float().mean() > 0.95  # edges are blurred
