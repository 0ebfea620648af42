"""The E³VA backbone under torchvision's feature pyramid."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ..backbone import LEVELS, E3VABackbone

LEVEL_NAMES = ("p2", "p3", "p4", "p5")


class PyramidBackbone(nn.Module):
    """An E³VA backbone with torchvision's FPN, in the form that torchvision's detectors expect.

    Args:
        bottom_up: the backbone; its trunk's parameters are named ``bottom_up.trunk.…``.
        channels: number of channels of each output level, also in ``out_channels``.
        extra_level: whether to add the level p6, at stride 64.
    """

    def __init__(self, bottom_up: E3VABackbone, channels: int, extra_level: bool = True):
        super().__init__()
        self.bottom_up = bottom_up
        blocks = LastLevelMaxPool() if extra_level else None
        dims = list(bottom_up.trunk.preset.dims)
        self.fpn = FeaturePyramidNetwork(dims, channels, extra_blocks=blocks)
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Map images [B, 3, H, W] to {p2..p5: [B, channels, ceil(H / s), ceil(W / s)]}.

        The strides s are 4 to 32; ``pool`` is p6, at stride 64.
        """
        features = self.bottom_up(images)
        named = zip(LEVEL_NAMES, (features[level] for level in LEVELS), strict=True)
        return self.fpn(OrderedDict(named))
