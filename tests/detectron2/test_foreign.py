"""A real adapter of the torchvision framework along Detectron2, and one of Detectron2 there."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.structures import Boxes
from torch import nn

from e3va import UserError, get_preset, highway_config
from e3va.adapter_files.files import save_adapter
from e3va.detectron2 import apply_overrides
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.torchvision import ModelConfig, build_model, load_model
from e3va.torchvision.cascade import AlignedPooler

LIGHT = [
    "model.backbone.out_channels=64",
    "model.proposal_generator.head.in_channels=64",
    "model.roi_heads.mask_head.input_shape.channels=64",
    "model.roi_heads.mask_head.conv_dims=[64,64,64]",
]
ANCHORS = "model.proposal_generator.anchor_generator.sizes=[[16],[32],[64],[128],[256]]"
POOLERS = [
    f"model.roi_heads.{name}.{setting}"
    for name in ("box_pooler", "mask_pooler")
    for setting in ("pooler_type=ROIAlign", "sampling_ratio=2")
]
HEIGHT, WIDTH = 96, 128  # multiples of the greatest stride: nothing is resized or padded


def light(cfg, kind):
    """Detectron2's model with the light heads of the other framework."""
    apply_overrides(cfg, LIGHT)
    heads = cfg.model.roi_heads
    if kind == "mask_rcnn":
        own = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.roi_heads
        own.num_classes, own.mask_head = heads.num_classes, heads.mask_head
        own.mask_head.num_classes = heads.num_classes
        cfg.model.roi_heads = own
        heads = cfg.model.roi_heads
        boxes = [(heads.box_head, heads.box_predictor)]
    else:
        boxes = zip(heads.box_heads, heads.box_predictors, strict=True)
    for head, predictor in boxes:
        head.input_shape.channels, head.fc_dims = 64, [256, 256]
        predictor.input_shape.channels, predictor.test_score_thresh = 256, 0.05
    cfg.model.proposal_generator.post_nms_topk = [1000, 1000]
    return cfg


def ours(kind):
    """A model of the torchvision framework; its features and boxes differ from place to place."""
    preset = get_preset("swin_nano")
    config = ModelConfig(
        *(kind, ("red", "blue"), preset, "swin.pth"),
        highway=highway_config(rank=4),
        **{"heads": "light", "size": HEIGHT, "max_size": WIDTH, "category_ids": (3, 7)},
    )
    model = build_model(config).eval()
    for name, value in model.named_parameters():
        if value.dim() > 1 and ".trunk." not in name:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
    return model, config


def picture():
    coarse = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8)
    return nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0]


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_an_error_has_the_overrides_that_set_anchors_and_pooling(small_config, tmp_path, kind):
    model, config = ours(kind)
    folder, trunk = tmp_path / "adapter", tmp_path / "swin.pth"
    save_adapter(
        model, folder, framework="torchvision", model=config.to_dict(), classes=config.classes
    )
    torch.save(model.backbone.bottom_up.trunk.state_dict(), trunk)
    cfg = light(small_config, kind)
    wanted = [ANCHORS, *(POOLERS if kind == "mask_rcnn" else [])]
    with pytest.raises(UserError, match="anchors or pooling") as caught:
        HighwayCheckpointer(instantiate(cfg.model), trunk=trunk).load(str(folder))
    assert caught.value.line.endswith(f"add {' '.join(wanted)}")

    theirs = instantiate(apply_overrides(cfg, wanted).model).eval()
    HighwayCheckpointer(theirs, trunk=trunk).load(str(folder))
    anchors = theirs.proposal_generator.anchor_generator.cell_anchors
    model.rpn.anchor_generator.cell_anchors = [own.clone() for own in anchors]  # not rounded
    image = picture()
    with torch.no_grad():
        found = model([image])[0]
        other = theirs([{"image": image * 255, "height": HEIGHT, "width": WIDTH}])[0]["instances"]
    assert len(other) == len(found["scores"]) >= 20
    torch.testing.assert_close(other.scores, found["scores"], rtol=0, atol=2e-3)
    torch.testing.assert_close(other.pred_boxes.tensor, found["boxes"], rtol=0, atol=0.5)


def test_a_mask_rcnn_of_detectron2_is_pooled_alike_in_torchvision(small_config, tmp_path):
    cfg = light(small_config, "mask_rcnn")
    theirs = instantiate(cfg.model).eval()
    folder, trunk = tmp_path / "adapter", tmp_path / "swin.pth"
    torch.save(theirs.backbone.bottom_up.trunk.state_dict(), trunk)
    save_adapter(theirs, folder, framework="detectron2", classes=("red", "blue"))
    model, config = load_model(folder, trunk=str(trunk))
    assert (config.model, config.pooling, config.size) == ("mask_rcnn", "aligned", 800)
    assert isinstance(model.roi_heads.box_roi_pool, AlignedPooler)
    assert isinstance(model.roi_heads.mask_roi_pool, AlignedPooler)
    features = {f"p{level}": torch.randn(1, 64, 96 >> level, 128 >> level) for level in range(2, 6)}
    boxes = torch.tensor([[3.0, 5.0, 60.0, 44.0], [20.0, 10.0, 47.0, 51.0]])
    expected = theirs.roi_heads.box_pooler([*features.values()], [Boxes(boxes)])
    torch.testing.assert_close(
        model.roi_heads.box_roi_pool(features, [boxes], [(96, 128)]), expected
    )
