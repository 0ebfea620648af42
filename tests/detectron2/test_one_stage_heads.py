"""RetinaNet and FCOS with the same weights in both frameworks find the same objects."""

import pytest
import torch
from detectron2.config import instantiate
from torch import nn
from torchvision.ops import box_iou

from e3va import UserError, get_preset
from e3va.adapter_files.files import save_adapter
from e3va.adapter_files.heads import framework_of, to_framework
from e3va.detectron2 import apply_overrides, load_config
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.torchvision import ModelConfig, build_model, load_model

CONFIGS = {
    "faster_rcnn": "COCO/faster_rcnn_e3va_swin_t_1x.py",
    "retinanet": "VOC/retinanet_e3va_swin_t.py",
    "fcos": "COCO/fcos_e3va_swin_t_1x.py",
}
SMALL = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.bottom_up.highway.rank=4",
    "model.backbone.out_channels=64",
]
ONE_STAGE = [
    "model.head.conv_dims=[64, 64, 64, 64]",
    "model.head.input_shape=[" + ", ".join(5 * ["{channels: 64}"]) + "]",
    "model.num_classes=2",
]
TWO_STAGES = [
    "model.proposal_generator.head.in_channels=64",
    "model.roi_heads.box_head.input_shape.channels=64",
    "model.roi_heads.box_head.fc_dims=[256, 256]",
    "model.roi_heads.box_predictor.input_shape.channels=256",
    "model.roi_heads.num_classes=2",
]
HEIGHT, WIDTH = 96, 160  # multiples of 32, but not of 128: the stride of p7 does not divide them


def theirs_of(kind):
    overrides = TWO_STAGES if kind == "faster_rcnn" else ONE_STAGE
    return load_config(CONFIGS[kind], SMALL + overrides)


def ours_of(kind):
    """A model whose features, scores and boxes differ from place to place, and its config."""
    config = ModelConfig(
        *(kind, ("red", "blue"), get_preset("swin_nano"), "swin.pth"),
        highway={"rank": 4},
        **{"heads": "light", "size": HEIGHT, "max_size": WIDTH, "category_ids": (3, 7)},
    )
    model = build_model(config).eval()
    for name, value in model.named_parameters():
        if value.dim() > 1 and ".trunk." not in name:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)
    if kind != "faster_rcnn":
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -1)
    return model, config


def save(model, /, folder, trunk, **about):
    torch.save(model.backbone.bottom_up.trunk.state_dict(), trunk)
    save_adapter(model, folder, classes=("red", "blue"), **about)


@pytest.mark.parametrize("kind", CONFIGS)
def test_renaming_to_the_other_framework_and_back_is_bit_equal(kind):
    state = instantiate(theirs_of(kind).model).state_dict()
    there, left = to_framework(state, "torchvision")
    assert not left and (framework_of(state), framework_of(there)) == ("detectron2", "torchvision")
    ours, _ = ours_of(kind)
    ours.load_state_dict(there)
    back, left = to_framework(ours.state_dict(), "detectron2")
    assert not left and back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_an_adapter_finds_the_same_objects_in_detectron2(kind, tmp_path):
    model, config = ours_of(kind)
    folder, trunk = tmp_path / "adapter", tmp_path / "swin.pth"
    save(model, folder, trunk, framework="torchvision", model=config.to_dict())
    cfg = theirs_of(kind)
    if kind == "retinanet":  # the torchvision framework halves the anchors of small images
        with pytest.raises(UserError, match="anchors or pooling") as caught:
            HighwayCheckpointer(instantiate(cfg.model), trunk=trunk).load(str(folder))
        override = caught.value.line.split("add ")[1]
        assert override.startswith("model.anchor_generator.sizes=[[16") and " " not in override
        cfg = apply_overrides(cfg, [override])
    theirs = instantiate(cfg.model).eval()
    HighwayCheckpointer(theirs, trunk=trunk).load(str(folder))
    image = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8)
    image = nn.functional.interpolate(image, size=(HEIGHT, WIDTH), mode="bilinear")[0]
    batch, _ = model.transform([image])
    levels = list(model.backbone(batch.tensors).values())
    (anchors,) = model.anchor_generator(batch, levels)
    others = torch.cat([boxes.tensor for boxes in theirs.anchor_generator(levels)])
    torch.testing.assert_close(anchors, others, rtol=0, atol=1e-3)
    found = model([image])[0]
    other = theirs([{"image": image * 255, "height": HEIGHT, "width": WIDTH}])[0]["instances"]
    count = len(found["scores"])
    # Rounding may let one more or less through the suppression.
    assert count > 30 and abs(count - len(other)) <= 0.05 * count
    assert len(found["labels"].unique()) == 2
    overlap = box_iou(found["boxes"], other.pred_boxes.tensor)
    best, place = (overlap * (found["labels"][:, None] - 1 == other.pred_classes)).max(1)
    assert (best > 0.99).float().mean() > 0.95
    scores = other.scores[place[best > 0.99]]
    torch.testing.assert_close(scores, found["scores"][best > 0.99], rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_of_detectron2_is_recognized(kind, tmp_path):
    theirs = instantiate(theirs_of(kind).model).eval()
    folder, trunk = tmp_path / "adapter", tmp_path / "swin.pth"
    save(theirs, folder, trunk, framework="detectron2")
    model, config = load_model(folder, trunk=str(trunk))
    assert (config.model, config.classes, config.heads) == (kind, ("red", "blue"), "light")
    assert config.size == 800
    if kind == "retinanet":
        cells = zip(
            model.anchor_generator.cell_anchors, theirs.anchor_generator.cell_anchors, strict=True
        )
        for own, other in cells:
            torch.testing.assert_close(own, other)


def test_the_backbone_part_fits_models_with_other_levels(tmp_path):
    """The highway of a Faster R-CNN, which also reads stride 4, in a RetinaNet."""
    model, config = ours_of("faster_rcnn")
    folder, trunk = tmp_path / "adapter", tmp_path / "swin.pth"
    save(model, folder, trunk, framework="torchvision", model=config.to_dict())
    theirs = instantiate(theirs_of("retinanet").model)
    HighwayCheckpointer(theirs, trunk=trunk, adapter_parts="backbone").load(str(folder))
    own = model.backbone.bottom_up.highway.state_dict()
    other = theirs.backbone.bottom_up.highway.state_dict()
    assert own.keys() - other.keys() == {f"stages.0.out_norm.{k}" for k in ("weight", "bias")}
    assert all(torch.equal(own[name], value) for name, value in other.items())
