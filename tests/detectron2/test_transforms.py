"""Images of any shape: sides of at least one pixel in training, predictions and pictures."""

import detectron2.data.transforms as T
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from e3va.detectron2 import load_config
from e3va.detectron2.masks import masks_on_demand
from e3va.detectron2.transforms import ResizeShortestEdge
from e3va.detectron2.visualize import draw_output

from .test_lean import make, small_cfg

CONFIGS = {
    "cascade": "custom/cascade_mask_rcnn_e3va_swin_t.py",
    "retinanet": "custom/retinanet_e3va_swin_t.py",
    "semantic": "custom/semantic_fpn_e3va_swin_t.py",
}
SIZES = {  # width, height: the size at which the detectors predict, and the size of the picture
    (6000, 2): ((1333, 1), (6000, 2)),
    (2, 6000): ((1, 1333), (2, 6000)),
    (1, 6000): ((1, 1333), (1, 6000)),
    (260, 1): ((1333, 5), (2000, 7)),
    (1, 1): ((800, 800), (480, 480)),
}


@pytest.mark.parametrize("size", [(64, 48), (1333, 7), (4000, 3000), (31, 1333)])
def test_usual_shapes_are_resized_as_by_detectron2(size):
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    theirs, ours = (
        kind(800, 1333).get_transform(picture)
        for kind in (T.ResizeShortestEdge, ResizeShortestEdge)
    )
    assert (ours.new_h, ours.new_w) == (theirs.new_h, theirs.new_w)
    assert isinstance(ResizeShortestEdge(0).get_transform(picture), T.NoOpTransform)


def record_of(folder, kind, width, height):
    """The record of an image with two objects, one an RLE, or with a label map."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    record = {"file_name": str(folder / "a.png"), "height": height, "width": width}
    if kind == "semantic":
        Image.fromarray(noise[..., 0] % 3).save(folder / "labels.png")
        return {**record, "sem_seg_file_name": str(folder / "labels.png")}
    corners = [0, 0, width, 0, width, height, 0, height]
    everything = mask_util.encode(np.ones((height, width), np.uint8, order="F"))
    about = {"bbox": [0, 0, width, height], "bbox_mode": BoxMode.XYWH_ABS}
    objects = [
        {**about, "category_id": number, "iscrowd": 0, "segmentation": mask}
        for number, mask in enumerate(([corners], everything))
    ]
    return {**record, "annotations": objects}


@pytest.mark.parametrize("size", [*SIZES], ids=str)
@pytest.mark.parametrize("kind", [*CONFIGS])
def test_images_of_extreme_shapes_train_and_are_drawn(kind, size, tmp_path):
    cfg = small_cfg(kind)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.001
    model = make(kind, "standard", cfg)
    loader = load_config(CONFIGS[kind], ["data.classes=[a,b]"]).dataloader
    record = record_of(tmp_path, kind, *size)
    example = instantiate(loader.train.mapper)(record)
    assert min(example["image"].shape) >= 1
    if kind != "semantic":
        assert len(example["instances"]) == 2
    with EventStorage():
        loss = sum(model([example]).values())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)

    used, drawn = SIZES[size]
    example = instantiate(loader.test.mapper)(record_of(tmp_path, kind, *size))
    if kind != "semantic":
        assert tuple(example["image"].shape) == (3, *used[::-1])
    with torch.no_grad(), masks_on_demand(model.eval()):
        found = model([{**example, "height": size[1], "width": size[0]}])[0]
    image = np.asarray(Image.open(tmp_path / "a.png"))
    metadata = Metadata(thing_classes=["a", "b"], stuff_classes=["a", "b", "c"])
    assert draw_output(image, found, metadata, 0.0)[0].shape == (*drawn[::-1], 3)
