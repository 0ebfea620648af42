"""The cascade's arithmetic equals sums by hand and Detectron2."""

import importlib.util

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from e3va.adapter_files.heads import to_framework
from e3va.torchvision.cascade import (
    AlignedPooler,
    CascadePredictor,
    CascadeRoIHeads,
)

LEVELS = ("p2", "p3", "p4", "p5")
CHANNELS, CLASSES, SIDE = 8, 3, 128
needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed"
)


def make_heads(batch_size_per_image=4096):
    torch.manual_seed(1)
    heads = CascadeRoIHeads(
        AlignedPooler(LEVELS, 7),
        [TwoMLPHead(CHANNELS * 49, 16) for _ in range(3)],
        [CascadePredictor(16, 1 + CLASSES) for _ in range(3)],
        mask_roi_pool=AlignedPooler(LEVELS, 14),
        mask_head=MaskRCNNHeads(CHANNELS, (8, 8, 8, 8), 1),
        mask_predictor=MaskRCNNPredictor(8, 8, 1 + CLASSES),
        batch_size_per_image=batch_size_per_image,
    )
    for module in heads.modules():  # large enough that classes and boxes differ
        if isinstance(module, CascadePredictor):
            nn.init.normal_(module.cls_score.weight, std=0.7)
            nn.init.normal_(module.bbox_pred.weight, std=0.3)
    return heads


def make_input(images=2, proposals=40):
    generator = torch.Generator().manual_seed(2)
    features = {
        name: torch.randn(images, CHANNELS, SIDE // s, SIDE // s, generator=generator)
        for name, s in zip(LEVELS, (4, 8, 16, 32), strict=True)
    }

    def boxes(count, size):
        corner = torch.rand(count, 2, generator=generator) * (SIDE - size - 10)
        return torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=generator) * size], 1)

    targets = []
    for _ in range(images):
        own = boxes(3, 60)
        masks = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, own.round().int().tolist(), strict=True):
            mask[y1 : (y1 + y2) // 2, x1:x2] = 1
        targets.append({"boxes": own, "labels": torch.tensor([1, 2, 3]), "masks": masks})
    near = [t["boxes"].repeat(6, 1) + 4 * torch.randn(18, 4, generator=generator) for t in targets]
    return features, [torch.cat([boxes(proposals, 50), n]) for n in near], targets


def test_a_stage_passes_a_third_of_its_gradient_to_the_features():
    heads, found = make_heads(), []
    for training in (True, False):  # evaluation does not scale
        features, proposals, _ = make_input()
        features["p2"].requires_grad_()
        logits, _ = heads.train(training)._run_stage(0, features, proposals, [(SIDE, SIDE)] * 2)
        logits.square().sum().backward()
        found.append((logits, features["p2"].grad))
    (scaled, own), (plain, full) = found
    assert torch.equal(scaled, plain) and full.abs().max() > 0
    torch.testing.assert_close(3 * own, full)


def test_scores_are_averaged_and_boxes_refined_three_times():
    """The predictors return constants, so the result can be computed by hand."""
    heads = make_heads().eval()
    heads.score_thresh = 0.0
    for stage, predictor in enumerate(heads.box_predictor):
        nn.init.zeros_(predictor.cls_score.weight)
        nn.init.zeros_(predictor.bbox_pred.weight)
        predictor.cls_score.bias.data = torch.tensor([0.0, float(stage), 0.0, -1.0])
        # dx of weight 10, 20, 30: a move by 1/10, 2/20, 3/30 of the width.
        predictor.bbox_pred.bias.data = torch.tensor([float(stage + 1), 0.0, 0.0, 0.0])
    features, _, _ = make_input(images=1)
    with torch.no_grad():
        found = heads(features, [torch.tensor([[10.0, 20.0, 30.0, 60.0]])], [(SIDE, SIDE)])[0][0]
    logits = torch.tensor([[0, k, 0, -1.0] for k in range(3)], dtype=torch.float64)
    expected = (logits.exp() / logits.exp().sum(1, keepdim=True)).mean(0)[1:]
    for label, score, box in zip(found["labels"], found["scores"], found["boxes"], strict=True):
        assert score.item() == pytest.approx(expected[label - 1].item(), rel=1e-5)
        assert box.tolist() == pytest.approx([16.0, 20.0, 36.0, 60.0], abs=1e-4)
    assert sorted(found["labels"].tolist()) == [1, 2, 3]


def test_boxes_that_leave_the_image_are_dropped_between_stages():
    heads = make_heads()
    first = heads.box_predictor[0]
    nn.init.zeros_(first.bbox_pred.weight)
    first.bbox_pred.bias.data = torch.tensor([1000.0, 0.0, 0.0, 0.0])  # a hundred widths away
    features, proposals, targets = make_input(images=1)
    _, losses = heads(features, proposals, [(SIDE, SIDE)], targets)
    for stage in (1, 2):
        assert losses[f"loss_classifier_stage{stage}"] == 0
        assert losses[f"loss_box_reg_stage{stage}"] == 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters() if p.grad is not None)


def test_each_stage_wants_a_higher_overlap():
    heads = make_heads()
    box = torch.tensor([[0.0, 0.0, 100.0, 10.0]])
    # Overlaps with the box: 0.55, 0.65, 0.75.
    proposals = torch.tensor([[0.0, 0.0, w, 10.0] for w in (55.0, 65.0, 75.0)])
    target = [{"boxes": box, "labels": torch.tensor([2])}]
    labels = [heads._assign(stage, [proposals], target)[0][0].tolist() for stage in range(3)]
    assert labels == [[2, 2, 2], [0, 2, 2], [0, 0, 2]]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert heads._assign(1, [proposals], [none])[0][0].tolist() == [0, 0, 0]
    assert heads._assign(1, [proposals[:0]], target)[0][0].tolist() == []


def detectron2_heads(ours):
    """Return Detectron2's CascadeROIHeads with the same weights."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.roi_heads import (
        CascadeROIHeads,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
    )

    def pooler(side):
        return ROIPooler(side, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, "ROIAlignV2")

    theirs = CascadeROIHeads(
        num_classes=CLASSES,
        batch_size_per_image=4096,
        positive_fraction=0.25,
        proposal_matchers=[
            Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou in (0.5, 0.6, 0.7)
        ],
        box_in_features=list(LEVELS),
        box_pooler=pooler(7),
        box_heads=[
            FastRCNNConvFCHead(
                ShapeSpec(channels=CHANNELS, height=7, width=7), conv_dims=[], fc_dims=[16, 16]
            )
            for _ in range(3)
        ],
        box_predictors=[
            FastRCNNOutputLayers(
                ShapeSpec(channels=16),
                box2box_transform=Box2BoxTransform(weights=(w, w, w / 2, w / 2)),
                num_classes=CLASSES,
                cls_agnostic_bbox_reg=True,
                test_score_thresh=0.05,
                test_topk_per_image=100,
            )
            for w in (10, 20, 30)
        ],
        mask_in_features=list(LEVELS),
        mask_pooler=pooler(14),
        mask_head=MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=CHANNELS, height=14, width=14),
            num_classes=CLASSES,
            conv_dims=[8] * 5,
        ),
    )
    own = {f"roi_heads.{name}": value for name, value in ours.state_dict().items()}
    mapped, left = to_framework(own, "detectron2")
    assert not left
    theirs.load_state_dict({k.removeprefix("roi_heads."): v for k, v in mapped.items()})
    return theirs


def detectron2_input(proposals, targets):
    from detectron2.structures import BitMasks, Boxes, Instances

    theirs = []
    for boxes in proposals:
        own = Instances((SIDE, SIDE))
        own.proposal_boxes = Boxes(boxes.clone())
        own.objectness_logits = torch.zeros(len(boxes))
        theirs.append(own)
    truth = []
    for target in targets:
        own = Instances((SIDE, SIDE))
        own.gt_boxes = Boxes(target["boxes"])
        own.gt_classes = target["labels"] - 1
        own.gt_masks = BitMasks(target["masks"].bool())
        truth.append(own)
    return theirs, truth


@needs_detectron2
def test_losses_and_gradients_equal_detectron2():
    from detectron2.utils.events import EventStorage

    ours = make_heads()
    theirs = detectron2_heads(ours)
    features, proposals, targets = make_input()
    mine = {k: v.clone().requires_grad_() for k, v in features.items()}
    _, losses = ours(mine, list(proposals), [(SIDE, SIDE)] * 2, targets)
    sum(losses.values()).backward()
    other = {k: v.clone().requires_grad_() for k, v in features.items()}
    their_proposals, truth = detectron2_input(proposals, targets)
    with EventStorage():
        _, their_losses = theirs(None, other, their_proposals, truth)
    sum(their_losses.values()).backward()
    names = {"loss_mask": "loss_mask"}
    for stage in range(3):
        names[f"loss_classifier_stage{stage}"] = f"loss_cls_stage{stage}"
        names[f"loss_box_reg_stage{stage}"] = f"loss_box_reg_stage{stage}"
    assert losses.keys() == names.keys() and set(names.values()) == their_losses.keys()
    for name, their_name in names.items():
        assert losses[name].item() > 0
        assert losses[name].item() == pytest.approx(their_losses[their_name].item(), rel=1e-5), name
    for level in LEVELS:
        torch.testing.assert_close(mine[level].grad, other[level].grad, rtol=1e-4, atol=1e-7)


@needs_detectron2
def test_boxes_scores_and_masks_equal_detectron2():
    ours = make_heads().eval()
    theirs = detectron2_heads(ours).eval()
    features, proposals, targets = make_input()
    with torch.no_grad():
        found, _ = ours(features, list(proposals), [(SIDE, SIDE)] * 2)
        their_found, _ = theirs(None, features, detectron2_input(proposals, targets)[0])
    for mine, other in zip(found, their_found, strict=True):
        assert len(mine["scores"]) == len(other) > 10
        order, their_order = mine["scores"].argsort(), other.scores.argsort()
        torch.testing.assert_close(mine["scores"][order], other.scores[their_order])
        torch.testing.assert_close(
            mine["boxes"][order], other.pred_boxes.tensor[their_order], rtol=1e-4, atol=1e-3
        )
        assert torch.equal(mine["labels"][order] - 1, other.pred_classes[their_order])
        torch.testing.assert_close(
            mine["masks"][order], other.pred_masks[their_order], rtol=1e-4, atol=1e-5
        )
