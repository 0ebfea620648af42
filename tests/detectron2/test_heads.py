"""The same weights in both frameworks: same features, proposals, detections and masks, to rounding.

Where the arithmetic differs, a test shows how: torchvision rounds the anchors, and its
Mask R-CNN pools otherwise. All else is compared with those made the same.
"""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torchvision.ops import box_iou

from e3va import get_preset, highway_config
from e3va.adapter_files.heads import framework_of, to_framework
from e3va.torchvision import ModelConfig, build_model
from e3va.torchvision.models import HEADS, HeadSizes

SIZES = HeadSizes(channels=16, box=32, mask=(16,), semantic=64, rois=16, lr=1e-3)
LEVELS = ("p2", "p3", "p4", "p5", "p6")
CLASSES = 2
HEIGHT, WIDTH = 96, 128  # multiples of the greatest stride: nothing is resized or padded


@pytest.fixture
def frameworks_of(small_config, monkeypatch):
    """(torchvision's, Detectron2's) model of a kind with random weights of their own."""
    monkeypatch.setitem(HEADS, "small", SIZES)

    def build(kind):
        config = ModelConfig(
            kind,
            ("red", "blue"),
            get_preset("swin_nano"),
            "random",
            highway=highway_config(rank=4),
            heads="small",
            size=HEIGHT,
            max_size=WIDTH,
        )
        return build_model(config).eval(), detectron2_model(kind, small_config.model).eval()

    return build


def detectron2_model(kind, cfg):
    if kind == "semantic_fpn":
        shapes = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 6)}
        return SemanticSegmentor(
            backbone=instantiate(cfg.backbone),
            sem_seg_head=SemSegFPNHead(
                shapes, num_classes=CLASSES, conv_dims=SIZES.semantic, common_stride=4, norm="GN"
            ),
            pixel_mean=list(cfg.pixel_mean),
            pixel_std=list(cfg.pixel_std),
        )
    cfg.proposal_generator.post_nms_topk = [1000, 1000]
    if kind == "mask_rcnn":
        cfg.roi_heads = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model.roi_heads
        cfg.roi_heads.num_classes = CLASSES
        cfg.roi_heads.mask_head.input_shape.channels = 16
        cfg.roi_heads.mask_head.conv_dims = [16, 16]
        boxes = [(cfg.roi_heads.box_head, cfg.roi_heads.box_predictor)]
    else:
        boxes = list(zip(cfg.roi_heads.box_heads, cfg.roi_heads.box_predictors, strict=True))
    for head, predictor in boxes:
        head.input_shape.channels = 16
        head.fc_dims = [32, 32]
        predictor.input_shape.channels = 32
        predictor.test_score_thresh = 0.05
    return instantiate(cfg)


def enlarge(model):
    """Weights with which features, scores and boxes differ from place to place."""
    for name, value in model.named_parameters():
        if value.dim() > 1 and ".trunk." not in name:
            nn.init.normal_(value, std=value[0].numel() ** -0.5)


@pytest.fixture
def same_weights(frameworks_of):
    """Both frameworks' models of a kind with torchvision's weights and Detectron2's anchors."""

    def build(kind):
        ours, theirs = frameworks_of(kind)
        enlarge(ours)
        state, left = to_framework(ours.state_dict(), "detectron2")
        assert not left
        theirs.load_state_dict(state)
        if kind != "semantic_fpn":
            anchors = theirs.proposal_generator.anchor_generator.cell_anchors
            ours.rpn.anchor_generator.cell_anchors = [own.clone() for own in anchors]
        return ours, theirs

    return build


def picture():
    coarse = torch.rand(1, 3, HEIGHT // 8, WIDTH // 8)
    return nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0]


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn", "semantic_fpn"])
def test_renaming_to_the_other_framework_and_back_is_bit_equal(frameworks_of, kind):
    ours, theirs = frameworks_of(kind)
    state = theirs.state_dict()
    there, left = to_framework(state, "torchvision")
    assert not left and (framework_of(state), framework_of(there)) == ("detectron2", "torchvision")
    ours.load_state_dict(there)
    back, left = to_framework(ours.state_dict(), "detectron2")
    assert not left and back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert to_framework(state, "detectron2") == (state, ())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_images_features_and_proposals_are_the_same(same_weights, kind):
    ours, theirs = same_weights(kind)
    image = picture()
    batch, _ = ours.transform([image])
    their_batch = theirs.preprocess_image([{"image": 255 * image}])
    torch.testing.assert_close(batch.tensors, their_batch.tensor, rtol=1e-5, atol=1e-5)
    features, their_features = ours.backbone(batch.tensors), theirs.backbone(their_batch.tensor)
    for own, other in zip(features.values(), (their_features[k] for k in LEVELS), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    in_order = [their_features[k] for k in LEVELS]
    for outputs in zip(
        ours.rpn.head(list(features.values())),
        theirs.proposal_generator.rpn_head(in_order),
        strict=True,
    ):
        for own, other in zip(*outputs, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    (boxes,), _ = ours.rpn(batch, features)
    (found,), _ = theirs.proposal_generator(their_batch, their_features)
    others = found.proposal_boxes.tensor
    # Rounding may let one more or less through the suppression.
    assert len(boxes) > 500 and abs(len(boxes) - len(others)) <= 0.01 * len(boxes)
    assert (box_iou(boxes, others).amax(1) > 0.999).float().mean() > 0.99


@torch.no_grad()
def test_the_cascade_finds_the_same_objects_with_the_same_masks(same_weights):
    ours, theirs = same_weights("cascade_mask_rcnn")
    ours.roi_heads.detections_per_img = 1000  # or one class could take all places
    theirs.roi_heads.box_predictor[-1].test_topk_per_image = 1000
    image = picture()
    batch, _ = ours.transform([image])
    features = ours.backbone(batch.tensors)
    proposals, _ = ours.rpn(batch, features)
    # Before the masks are drawn into the image, which each framework does in its own way.
    (found,), _ = ours.roi_heads(features, proposals, batch.image_sizes)
    (other,) = theirs.inference([{"image": 255 * image}], do_postprocess=False)
    count = len(found["scores"])
    assert count > 50 and abs(count - len(other)) <= 0.02 * count  # see above
    assert len(found["labels"].unique()) == CLASSES
    overlap = box_iou(found["boxes"], other.pred_boxes.tensor)
    best, place = (overlap * (found["labels"][:, None] - 1 == other.pred_classes)).max(1)
    assert (best > 0.99).float().mean() > 0.98
    place, own = place[best > 0.99], {name: value[best > 0.99] for name, value in found.items()}
    torch.testing.assert_close(own["scores"], other.scores[place], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own["boxes"], other.pred_boxes.tensor[place], rtol=1e-3, atol=0.05)
    torch.testing.assert_close(own["masks"], other.pred_masks[place], rtol=1e-2, atol=1e-2)
    assert own["masks"].std() > 0.05


def test_torchvision_rounds_the_anchors(frameworks_of):
    """Same order and centres; whole pixels, so a side is at most one pixel longer or shorter."""
    ours, theirs = frameworks_of("cascade_mask_rcnn")
    generator = theirs.proposal_generator.anchor_generator
    assert generator.offset == 0
    least = 16 / 32  # torchvision's framework halves them for images below 400 pixels
    for own, other in zip(
        ours.rpn.anchor_generator.cell_anchors, generator.cell_anchors, strict=True
    ):
        assert torch.equal(own, (other * least).round())
        assert (own - other * least).abs().max() <= 0.5


@torch.no_grad()
def test_mask_rcnn_s_heads_are_the_same_on_the_same_pooled_features(same_weights):
    ours, theirs = same_weights("mask_rcnn")
    pooled = torch.randn(50, 16, 7, 7)
    own, other = (
        model.roi_heads.box_predictor(model.roi_heads.box_head(pooled)) for model in (ours, theirs)
    )
    torch.testing.assert_close(
        own[0][:, [*range(1, 1 + CLASSES), 0]], other[0], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(own[1][:, 4:], other[1], rtol=1e-4, atol=1e-4)
    assert (
        ours.roi_heads.box_coder.weights == theirs.roi_heads.box_predictor.box2box_transform.weights
    )
    pooled = torch.randn(5, 16, 14, 14)
    masks = ours.roi_heads.mask_predictor(ours.roi_heads.mask_head(pooled))
    others = theirs.roi_heads.mask_head.layers(pooled)
    torch.testing.assert_close(masks[:, 1:], others, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mask_rcnn_pools_half_a_pixel_aside_in_torchvision(same_weights):
    """A feature that is its own x: torchvision's RoI reads x, Detectron2's x − 1/2."""
    ours, theirs = same_weights("mask_rcnn")
    columns = torch.arange(32.0).expand(1, 16, 24, 32)
    features = {f"p{2 + i}": columns[..., :: 2**i, :: 2**i] / 2**i for i in range(4)}
    boxes = torch.tensor([[16.0, 16.0, 72.0, 72.0]])  # read at stride 4
    own = ours.roi_heads.box_roi_pool(features, [boxes], [(HEIGHT, WIDTH)])
    other = theirs.roi_heads.box_pooler([features[k] for k in LEVELS[:4]], [Boxes(boxes)])
    torch.testing.assert_close(own - other, torch.full_like(own, 0.5), rtol=0, atol=1e-4)
    # With these settings Detectron2 pools as torchvision does.
    features = {name: torch.randn_like(value) for name, value in features.items()}
    own = ours.roi_heads.box_roi_pool(features, [boxes], [(HEIGHT, WIDTH)])
    pooler = ROIPooler(7, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 2, "ROIAlign")
    other = pooler([features[k] for k in LEVELS[:4]], [Boxes(boxes)])
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_semantic_fpn_is_the_same(same_weights):
    ours, theirs = same_weights("semantic_fpn")
    images = [picture(), picture()]
    batch, _ = ours.transform(images)
    own = ours.sem_seg_head(ours.backbone(batch.tensors))
    other = theirs.sem_seg_head.layers(theirs.backbone(batch.tensors))
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    for head in (ours.sem_seg_head, theirs.sem_seg_head):  # so that both classes are found
        head.predictor.bias.sub_(own.mean((0, 2, 3)))
    found = [result["labels"] for result in ours(images)]
    others = theirs([{"image": 255 * image} for image in images])
    for labels, result in zip(found, others, strict=True):
        assert len(labels.unique()) == CLASSES
        assert (labels == result["sem_seg"].argmax(0)).float().mean() > 0.999
