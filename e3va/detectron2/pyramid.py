"""An FPN of which the part above the backbone can be recomputed."""

import copy

from detectron2.modeling import FPN
from torch import Tensor, nn


class LeanPyramid:
    """Stands in for an FPN's ``forward``: the backbone runs once, what is above it again.

    FPN calls its backbone itself; an FPN that shares all its layers, but has the identity for a
    backbone, is what can be recomputed.

    Attributes:
        top_down: that FPN; takes the backbone's features.
    """

    def __init__(self, fpn: FPN):
        self.fpn = fpn
        self.top_down = copy.copy(fpn)
        # A shallow copy shares the dictionaries of its layers and hooks.
        fresh = {name: value for name, value in vars(nn.Module()).items() if "hooks" in name}
        vars(self.top_down).update(fresh)
        self.top_down._modules = {**fpn._modules, "bottom_up": nn.Identity()}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.top_down.training = self.fpn.training
        return self.top_down(self.fpn.bottom_up(images))
