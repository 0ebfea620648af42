"""Cascade R-CNN heads, which torchvision lacks (Cai and Vasconcelos, arXiv 1712.00726).

They compute the same as Detectron2's ``CascadeROIHeads`` with its defaults, including the pixel
grid of RoIAlign and of the mask targets; boxes, matching, sampling and NMS are torchvision's.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import _utils as det_utils
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.ops import boxes as box_ops
from torchvision.ops import roi_align
from torchvision.ops._utils import convert_boxes_to_roi_format
from torchvision.ops.poolers import LevelMapper

from .masks import crop_masks, mask_loss

IOUS = (0.5, 0.6, 0.7)
# Sampling of RoIs in training, and choice of detections in evaluation, as in Detectron2.
ROI_SETTINGS: dict[str, Any] = {
    **{"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.5, "positive_fraction": 0.25},
    **{"score_thresh": 0.05, "nms_thresh": 0.5, "detections_per_img": 100},
    **{"batch_size_per_image": 512, "bbox_reg_weights": None},
}
BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

Boxes = list[Tensor]  # one [N, 4] for each image, x1 y1 x2 y2 in pixels


class AlignedPooler(nn.Module):
    """RoIAlign over p2..p5 without the half-pixel offset of torchvision's ``MultiScaleRoIAlign``.

    ``levels`` are the names of the levels, in the order of their strides 4, 8, 16, …
    """

    def __init__(self, levels: Sequence[str], output_size: int):
        super().__init__()
        self.levels = tuple(levels)
        self.output_size = (output_size, output_size)  # torchvision's models read it

    def forward(self, features: dict[str, Tensor], boxes: Boxes, image_shapes: list) -> Tensor:
        """Map features [B, C, H_l, W_l] and boxes to [sum of N, C, side, side]."""
        del image_shapes  # torchvision's pooler infers the strides from them
        rois = convert_boxes_to_roi_format(boxes)
        level_of = LevelMapper(2, 1 + len(self.levels))(boxes)
        first = features[self.levels[0]]
        pooled = first.new_zeros(len(rois), first.shape[1], *self.output_size)
        for level, name in enumerate(self.levels):
            chosen = torch.where(level_of == level)[0]
            out = roi_align(
                features[name], rois[chosen], self.output_size, 1 / 2 ** (level + 2), aligned=True
            )
            pooled = pooled.to(out.dtype).index_copy(0, chosen, out)
        return pooled


class CascadePredictor(nn.Module):
    """Predictor of class logits (background first) and one box offset for all classes."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes)
        self.bbox_pred = nn.Linear(channels, 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, channels] to [N, num_classes] and [N, 4]."""
        return self.cls_score(x), self.bbox_pred(x)


class CascadeRoIHeads(RoIHeads):
    """Three box stages and a mask head; each later stage trains on the boxes of the previous one.

    Inputs and outputs are those of torchvision's ``RoIHeads``. The losses are
    ``loss_classifier_stage{k}``, ``loss_box_reg_stage{k}`` and ``loss_mask``. In evaluation the
    scores are the mean over the stages and the boxes are those of the last stage.

    Args:
        box_roi_pool: pooler of all stages.
        box_heads: one head for each stage.
        box_predictors: one predictor for each stage.
        others: ``mask_roi_pool``, ``mask_head``, ``mask_predictor`` and, if it is not 512,
            ``batch_size_per_image`` of torchvision's ``RoIHeads``.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[CascadePredictor],
        **others: Any,
    ):
        modules = (box_roi_pool, nn.ModuleList(box_heads), nn.ModuleList(box_predictors))
        settings = {**ROI_SETTINGS, **others, "bbox_reg_weights": BOX_WEIGHTS[0]}
        super().__init__(*modules, **settings)
        self.matchers = [det_utils.Matcher(iou, iou) for iou in IOUS]
        self.box_coders = [det_utils.BoxCoder(weights) for weights in BOX_WEIGHTS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Boxes,
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections and losses, see torchvision's ``RoIHeads.forward``."""
        if self.training:
            return [], self._losses(features, proposals, image_shapes, targets)
        detections = self._detect(features, proposals, image_shapes)
        boxes = [found["boxes"] for found in detections]
        logits = self._mask_logits(features, boxes, image_shapes)
        masks = maskrcnn_inference(logits, [found["labels"] for found in detections])
        for found, mask in zip(detections, masks, strict=True):
            found["masks"] = mask
        return detections, {}

    def _run_stage(self, stage: int, features, proposals: Boxes, shapes) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, proposals, shapes)
        if self.training and pooled.requires_grad:  # the mean of the three stages' gradients
            pooled.register_hook(lambda gradient: gradient * (1 / len(IOUS)))
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _refine(self, stage: int, deltas: Tensor, proposals: Boxes, shapes) -> Boxes:
        decoded = self.box_coders[stage].decode(deltas.detach(), proposals).reshape(-1, 4)
        decoded = decoded.split([len(p) for p in proposals])
        return [
            box_ops.clip_boxes_to_image(b, shape) for b, shape in zip(decoded, shapes, strict=True)
        ]

    def _losses(self, features, proposals: Boxes, shapes, targets) -> dict[str, Tensor]:
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        on = [torch.where(label > 0)[0] for label in labels]
        boxes = [p[chosen] for p, chosen in zip(proposals, on, strict=True)]
        side = 2 * self.mask_roi_pool.output_size[0]  # the mask predictor doubles it
        wanted = [
            crop_masks(target["masks"], box, index[chosen], side, aligned=True) >= 0.5
            for target, box, index, chosen in zip(targets, boxes, matched, on, strict=True)
        ]
        kinds = torch.cat([label[chosen] for label, chosen in zip(labels, on, strict=True)])
        # The masks are decoded outside of the function that lean runs twice.
        loss = self._mask_loss(features, boxes, shapes, kinds, torch.cat(wanted))
        losses = {"loss_mask": loss}
        for stage in range(len(IOUS)):
            logits, deltas = self._run_stage(stage, features, proposals, shapes)
            classes, wanted = torch.cat(labels), torch.cat(box_targets)
            on, count = classes > 0, max(len(classes), 1)  # there may be no box left
            class_loss = F.cross_entropy(logits, classes, reduction="sum")
            box_loss = F.l1_loss(deltas[on], wanted[on], reduction="sum")
            losses[f"loss_classifier_stage{stage}"] = class_loss / count
            losses[f"loss_box_reg_stage{stage}"] = box_loss / count
            if stage + 1 < len(IOUS):
                refined = self._refine(stage, deltas, proposals, shapes)
                proposals = [b[(b[:, 2:] > b[:, :2]).all(1)] for b in refined]  # with an area
                labels, box_targets = self._assign(stage + 1, proposals, targets)
        return losses

    def _assign(self, stage: int, proposals: Boxes, targets) -> tuple[list[Tensor], list[Tensor]]:
        """Return each proposal's class at this stage's IoU (0: background) and its box offset."""
        labels, truth = [], []
        for boxes, target in zip(proposals, targets, strict=True):
            if not len(boxes) or not len(target["boxes"]):
                labels.append(target["labels"].new_zeros(len(boxes)))
                truth.append(torch.zeros_like(boxes))
                continue
            matched = self.matchers[stage](box_ops.box_iou(target["boxes"], boxes))
            nearest = matched.clamp(min=0)
            labels.append(target["labels"][nearest] * (matched >= 0))
            truth.append(target["boxes"][nearest])
        return labels, self.box_coders[stage].encode(truth, proposals)

    def _mask_logits(self, features, boxes: Boxes, shapes) -> Tensor:
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, shapes)))

    def _mask_loss(self, features, boxes: Boxes, shapes, classes, wanted) -> Tensor:
        logits = self._mask_logits(features, boxes, shapes)
        return mask_loss(logits, classes, wanted.to(logits.dtype))

    def _detect(self, features, proposals: Boxes, shapes) -> list[dict[str, Tensor]]:
        probabilities = 0
        for stage in range(len(IOUS)):
            logits, deltas = self._run_stage(stage, features, proposals, shapes)
            probabilities = probabilities + logits.softmax(-1) / len(IOUS)
            proposals = self._refine(stage, deltas, proposals, shapes)
        split = probabilities.split([len(p) for p in proposals])
        return [self._select(b, p) for b, p in zip(proposals, split, strict=True)]

    def _select(self, boxes: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
        """Select from boxes [N, 4] and probabilities [N, classes] by score threshold and NMS."""
        place, label = torch.where(probabilities[:, 1:] > self.score_thresh)
        boxes, scores, labels = boxes[place], probabilities[place, label + 1], label + 1
        keep = box_ops.remove_small_boxes(boxes, min_size=1e-2)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = box_ops.batched_nms(boxes, scores, labels, self.nms_thresh)
        keep = keep[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
