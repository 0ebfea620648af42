"""The E³VA backbone under torchvision's feature pyramid."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..backbone import LEVELS, E3VABackbone

LEVEL_NAMES = ("p2", "p3", "p4", "p5")


class PyramidBackbone(nn.Module):
    """An E³VA backbone and torchvision's FPN over it, as torchvision's detectors want a backbone.

    Args:
        bottom_up: gives p0..p3; its trunk's parameters are named ``bottom_up.trunk.…``.
        channels: of every level that comes out, the attribute ``out_channels``.
        extra_level: whether p6, at stride 64, comes out too.
    """

    def __init__(self, bottom_up: E3VABackbone, channels: int, extra_level: bool = True):
        super().__init__()
        self.bottom_up = bottom_up
        self.fpn = FeaturePyramidNetwork(
            list(bottom_up.trunk.preset.dims),
            channels,
            extra_blocks=LastLevelMaxPool() if extra_level else None,
        )
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Images [B, 3, H, W] → {p2..p5: [B, channels, ceil(H / s), ceil(W / s)]}, strides s from
        4 to 32, and ``pool`` (p6) at stride 64."""
        features = self.bottom_up(images)
        named = zip(LEVEL_NAMES, (features[level] for level in LEVELS), strict=True)
        return self.fpn(OrderedDict(named))
