"""An FPN that can recompute its layers above the backbone."""

import copy

from detectron2.modeling import FPN
from torch import Tensor, nn


class LeanPyramid:
    """Replacement of an FPN's ``forward`` that runs the backbone once and recomputes the rest.

    FPN calls its backbone itself. So a second FPN shares all layers of the first, except that its
    backbone is the identity; that FPN can be recomputed.

    Attributes:
        top_down: the second FPN; its input is the backbone's features.
    """

    def __init__(self, fpn: FPN):
        self.fpn = fpn
        self.top_down = copy.copy(fpn)
        # A shallow copy shares the dictionaries of its layers and hooks.
        fresh = {name: value for name, value in vars(nn.Module()).items() if "hooks" in name}
        vars(self.top_down).update(fresh)
        self.top_down._modules = {**fpn._modules, "bottom_up": nn.Identity()}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to the FPN's levels."""
        self.top_down.training = self.fpn.training
        return self.top_down(self.fpn.bottom_up(images))
