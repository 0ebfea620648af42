"""Semantic FPN: semantic segmentation (Kirillov et al., arXiv 1901.02446, section 3)."""

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ..data.label_maps import IGNORED
from .pyramid import LEVEL_NAMES, PyramidBackbone


class SemanticHead(nn.Module):
    """The head: convolutions and upsampling to stride 4, a sum over the levels, a classifier.

    It computes the same as Detectron2's ``SemSegFPNHead``.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 128):
        super().__init__()
        self.levels = nn.ModuleList()
        for steps in range(len(LEVEL_NAMES)):  # doublings from the level's stride down to 4
            layers = []
            for step in range(max(1, steps)):
                width = channels if step else in_channels
                layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False)]
                layers += [nn.GroupNorm(gcd(32, channels), channels), nn.ReLU()]
                if steps:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*layers))
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Map {p2..p5} at strides 4 to 32 to logits [B, num_classes, H / 4, W / 4]."""
        levels = zip(self.levels, LEVEL_NAMES, strict=True)
        return self.predictor(sum(level(features[name]) for level, name in levels))


class SemanticFPN(nn.Module):
    """A model for semantic segmentation.

    Images are [3, H, W] in 0..1. In training ``model(images, targets)`` returns
    ``{"loss_sem_seg": …}``; targets have ``labels`` [H, W], classes from 0, and 255 for ignored
    pixels. In evaluation ``model(images)`` returns ``[{"labels": [H, W] int64}]`` at the images'
    own sizes.

    Args:
        backbone: backbone with the attribute ``out_channels`` and the levels p2..p5.
        num_classes: number of classes, with the background if the labels have one.
        transform: torchvision's transform, which resizes, normalizes and pads.
        channels: channels inside the head.
    """

    def __init__(
        self,
        backbone: PyramidBackbone,
        num_classes: int,
        transform: GeneralizedRCNNTransform,
        channels: int = 128,
    ):
        super().__init__()
        self.transform = transform
        self.backbone = backbone
        self.sem_seg_head = SemanticHead(backbone.out_channels, num_classes, channels)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training and label maps in evaluation, see the class."""
        sizes = [image.shape[-2:] for image in images]
        batch, _ = self.transform(images)
        logits = self.sem_seg_head(self.backbone(batch.tensors))
        if self.training:
            labels = [target["labels"] for target in targets]
            wanted = _pad_labels(labels, batch.image_sizes, batch.tensors.shape[-2:])
            return {"loss_sem_seg": self._loss(logits, wanted)}
        logits = resize(logits.float(), batch.tensors.shape[-2:])
        results = []
        for scores, (height, width), size in zip(logits, batch.image_sizes, sizes, strict=True):
            own = resize(scores[None, :, :height, :width], size)[0]
            results.append({"labels": own.argmax(0)})
        return results

    def _loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean loss of logits [B, num_classes, h, w] against labels [B, H, W]."""
        count = (wanted != IGNORED).sum().clamp(min=1)  # there may be only ignored pixels
        logits = resize(logits.float(), wanted.shape[-2:])
        loss = F.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
        return loss / count


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize [B, C, H, W] to ``size``, bilinearly."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _pad_labels(labels: list[Tensor], sizes: list[tuple[int, int]], padded) -> Tensor:
    """Resize label maps to their images in the batch [B, H, W]; padding is ignored."""
    batch = torch.full((len(labels), *padded), IGNORED, device=labels[0].device)
    for row, label, (height, width) in zip(batch, labels, sizes, strict=True):
        resized = F.interpolate(label[None, None].float(), size=(height, width), mode="nearest")
        row[:height, :width] = resized[0, 0].long()
    return batch
