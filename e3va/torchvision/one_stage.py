"""RetinaNet and FCOS of torchvision, with anchors at the exact places of the features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from .boxes import box_iou_in_parts

STRIDES = (8, 16, 32, 64, 128)  # of the levels p3 to p7


class ExactAnchors(AnchorGenerator):
    """Anchors of sizes × aspect ratios around the points of each level, in the order of Detectron2.

    They are float32 and not rounded, and their strides are fixed. torchvision rounds the anchors to
    whole pixels (in mixed precision to even fewer bits), and infers the strides from the shapes of
    the levels, which is wrong where a stride does not divide the image's sides.

    Args:
        sizes: sizes of the anchors of each level in pixels: square roots of their areas.
        ratios: aspect ratios, height / width.
        offset: place of the first point, as a share of the level's stride.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], offset: float):
        super().__init__(tuple(sizes), (tuple(ratios),) * len(sizes))
        self.offset = offset

    def generate_anchors(self, scales, aspect_ratios, *_: Any) -> Tensor:
        """Return the anchors of a level around the origin, [sizes · ratios, 4] float32."""
        size, root = torch.tensor(scales)[:, None], torch.tensor(aspect_ratios).sqrt()
        half = [(size / root / 2).flatten(), (size * root / 2).flatten()]
        return torch.stack([-half[0], -half[1], *half], dim=1)

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Move the anchors to a device; they stay float32."""
        del dtype
        super().set_cell_anchors(torch.float32, device)

    def grid_anchors(self, grid_sizes, strides) -> list[Tensor]:
        """Return the anchors [H · W · sizes · ratios, 4] of each level, x1 y1 x2 y2 in pixels."""
        del strides
        levels = super().grid_anchors(grid_sizes, [(stride, stride) for stride in STRIDES])
        shifts = (self.offset * stride for stride in STRIDES)
        return [level + shift for level, shift in zip(levels, shifts, strict=True)]


class _LabelsFromOne:
    """Labels count from 1 in targets and detections, as in torchvision's models with a background.

    torchvision's RetinaNet and FCOS count them from 0 and have no background. Losses and boxes are
    computed in float32, also under autocast, where coordinates would lose whole pixels. Boxes
    without an area are left out.
    """

    def compute_loss(self, targets, head_outputs, *others) -> dict[str, Tensor]:
        """Return the losses, see torchvision's model."""
        targets = [{**target, "labels": target["labels"] - 1} for target in targets]
        outputs = {name: value.float() for name, value in head_outputs.items()}
        return super().compute_loss(targets, outputs, *others)

    def postprocess_detections(self, head_outputs, *others) -> list[dict[str, Tensor]]:
        """Return the detections of each image, see torchvision's model."""
        outputs = {name: [v.float() for v in levels] for name, levels in head_outputs.items()}
        detections = super().postprocess_detections(outputs, *others)
        for found in detections:
            found["labels"] = found["labels"] + 1
        # A box outside of the image has no area after clipping.
        areas = [(found["boxes"][:, 2:] > found["boxes"][:, :2]).all(1) for found in detections]
        return [
            {name: value[kept] for name, value in found.items()}
            for found, kept in zip(detections, areas, strict=True)
        ]


class _RetinaNet(RetinaNet):
    """torchvision's RetinaNet; many objects need less memory, and the numbers are the same."""

    def compute_loss(self, targets, head_outputs, anchors) -> dict[str, Tensor]:
        """Return the losses, see torchvision's model."""
        matched = []
        for target, own in zip(targets, anchors, strict=True):
            boxes = target["boxes"]
            if len(boxes):
                matched.append(self.proposal_matcher(box_iou_in_parts(boxes, own)))
            else:
                matched.append(boxes.new_full((len(own),), -1, dtype=torch.int64))
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


class LabeledRetinaNet(_LabelsFromOne, _RetinaNet):
    """torchvision's RetinaNet with labels from 1."""


class LabeledFCOS(_LabelsFromOne, FCOS):
    """torchvision's FCOS with labels from 1."""


def retinanet_anchors(smallest: int) -> ExactAnchors:
    """Return three sizes in each octave from ``smallest`` pixels, with three aspect ratios each."""
    octaves = [smallest * 2**level for level in range(len(STRIDES))]
    sizes = [[size * 2 ** (third / 3) for third in range(3)] for size in octaves]
    return ExactAnchors(sizes, (0.5, 1.0, 2.0), offset=0.0)


def fcos_anchors() -> ExactAnchors:
    """Return one square of the stride's size around the centre of each feature."""
    return ExactAnchors([[float(stride)] for stride in STRIDES], (1.0,), offset=0.5)
