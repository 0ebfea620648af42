"""The E³VA backbone under torchvision's feature pyramid."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from ..backbone import LEVELS, E3VABackbone

LEVEL_NAMES = ("p2", "p3", "p4", "p5")
TOPS = ("pool", "c5", "p5")


class PyramidBackbone(nn.Module):
    """An E³VA backbone with torchvision's FPN, in the form that torchvision's detectors expect.

    Args:
        bottom_up: the backbone; its trunk's parameters are named ``bottom_up.trunk.…``.
        channels: number of channels of each output level, also in ``out_channels``.
        top: source of the levels above p5, one of ``TOPS``: ``"pool"`` for p6 by subsampling p5, or
            ``"c5"`` and ``"p5"`` for p6 and p7 by convolutions from the backbone's last level or
            from p5. None for no further level.
    """

    def __init__(self, bottom_up: E3VABackbone, channels: int, top: str | None = "pool"):
        super().__init__()
        self.bottom_up = bottom_up
        numbers = [LEVELS.index(level) for level in bottom_up.out_features]
        self.level_names = tuple(LEVEL_NAMES[number] for number in numbers)
        dims = [bottom_up.trunk.preset.dims[number] for number in numbers]
        blocks = None
        if top == "pool":
            blocks = LastLevelMaxPool()
        elif top is not None:
            blocks = LastLevelP6P7(channels if top == "p5" else dims[-1], channels)
            blocks.use_P5 = top == "p5"  # torchvision decides by the numbers of channels
        self.fpn = FeaturePyramidNetwork(dims, channels, extra_blocks=blocks)
        self.out_channels = channels

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Map images [B, 3, H, W] to {p2..p5: [B, channels, ceil(H / s), ceil(W / s)]}.

        The strides s are 4 to 32; a level that the backbone lacks is absent. Above p5 come ``pool``
        at stride 64, or ``p6`` and ``p7`` at strides 64 and 128.
        """
        features = self.bottom_up(images)
        named = zip(self.level_names, features.values(), strict=True)
        return self.fpn(OrderedDict(named))
