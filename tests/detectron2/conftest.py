"""Models small enough to train in a test, and data for them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall
from detectron2.modeling import SwinTransformer
from PIL import Image

from e3va import SwinTrunk
from e3va.detectron2 import load_config
from e3va.detectron2.engine import resolve_classes
from e3va.swin.presets import PRESETS
from e3va.utils.atomic import save_atomically

from .own_files import OwnData

# A Cascade Mask R-CNN whose trunk, necks and heads are a few hundred thousand parameters.
SMALL = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.bottom_up.highway.rank=4",
    "model.backbone.out_channels=16",
    "model.proposal_generator.head.in_channels=16",
    "model.proposal_generator.post_nms_topk=[30,30]",
    "model.roi_heads.batch_size_per_image=16",
    "model.roi_heads.mask_head.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "data.train.short_edge=[64,80]",
    "data.val.short_edge=64",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.device=cpu",
    "train.log_period=1",
    "train.eval_period=0",
    "optimizer.lr=1e-3",
]
SMALL += [
    f"model.roi_heads.{key}"
    for stage in range(3)
    for key in (
        f"box_heads.{stage}.input_shape.channels=16",
        f"box_heads.{stage}.fc_dims=[32]",
        f"box_predictors.{stage}.input_shape.channels=32",
        f"box_predictors.{stage}.test_score_thresh=0.01",
    )
]

# A Semantic FPN of about the same size.
HEAD = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.bottom_up.highway.rank=4",
    "model.backbone.out_channels=16",
    "model.sem_seg_head.conv_dims=32",
    "train.device=cpu",
    "train.log_period=1",
    "train.eval_period=0",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]


@pytest.fixture
def small_overrides(drawn, tmp_path) -> list[str]:
    """Overrides of the custom config for a small model on drawn data."""
    return [
        *SMALL,
        *(f"data.{split}.json={drawn.json}" for split in ("train", "val")),
        *(f"data.{split}.images={drawn.images}" for split in ("train", "val")),
        f"train.output_dir={tmp_path / 'output'}",
    ]


@pytest.fixture
def small_config(small_overrides):
    """The custom config with :func:`small_overrides`, class names filled in."""
    cfg = load_config("custom/cascade_mask_rcnn_e3va_swin_t.py", small_overrides)
    resolve_classes(cfg)
    return cfg


@pytest.fixture
def pretrained(tmp_path) -> Path:
    """A file of weights for the small model's trunk."""
    generator = torch.Generator().manual_seed(5)
    state = {
        name: torch.randn(value.shape, generator=generator) / 8
        for name, value in SwinTrunk("swin_nano").state_dict().items()
    }
    save_atomically({"model": state}, tmp_path / "swin.pth")
    return tmp_path / "swin.pth"


@pytest.fixture
def pretrained_config(small_config, pretrained):
    """``small_config`` that starts from :func:`pretrained` and ends after two steps."""
    small_config.train.init_checkpoint = str(pretrained)
    small_config.train.max_iter = 2
    return small_config


@pytest.fixture
def detectron2s_own(small_config):
    """``small_config`` with Detectron2's own Swin in place of the E³VA backbone."""
    cfg, nano = small_config.copy(), PRESETS["swin_nano"]
    cfg.model.backbone.bottom_up = LazyCall(SwinTransformer)(
        embed_dim=nano.embed_dim,
        depths=list(nano.depths),
        num_heads=list(nano.num_heads),
        window_size=nano.window,
        drop_path_rate=0.0,
        out_indices=[0, 1, 2, 3],
    )
    cfg.model.backbone.in_features = ["p0", "p1", "p2", "p3"]
    return cfg


@pytest.fixture
def own(tmp_path) -> OwnData:
    """Two images with an object each, and their COCO-format file."""
    return OwnData(tmp_path / "own", 2)


@pytest.fixture
def ten(tmp_path) -> OwnData:
    """Ten such images."""
    return OwnData(tmp_path / "own", 10)


@pytest.fixture
def model_overrides(small_overrides) -> list[str]:
    """Overrides for a small cascade; the data and the classes are not given."""
    places = ("data.train.json", "data.train.images", "data.val.json", "data.val.images")
    return [o for o in small_overrides if not o.startswith(places)]


@pytest.fixture
def maps(drawn, tmp_path) -> Path:
    """Label maps of the drawn pictures (1 red, 2 blue); the first row is ignored."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for image in drawn.data["images"]:
        labels = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in drawn.data["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, width, height = annotation["bbox"]
                labels[y : y + height, x : x + width] = 1 if annotation["category_id"] == 3 else 2
        labels[0] = 255
        Image.fromarray(labels).save(folder / f"{image['id']}.png")
    return folder


@pytest.fixture
def label_overrides(drawn, maps, tmp_path) -> list[str]:
    """Overrides of the custom Semantic FPN config for a small model on drawn data."""
    return [
        *HEAD,
        *(f"data.{split}.images={drawn.images}" for split in ("train", "val")),
        *(f"data.{split}.labels={maps}" for split in ("train", "val")),
        "data.classes=[ground,red,blue]",
        "data.train.short_edge=[64,96]",
        "data.train.crop=[64,64]",
        "data.val.short_edge=80",
        "optimizer.lr=2e-3",
        f"train.output_dir={tmp_path / 'output'}",
    ]
