"""``memory="lean"`` for this framework's models: neck and heads compute again what they do not keep.

What is recomputed at once is what is in memory at once, so the pieces are small where their seams
cost little.
"""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from ..ops.recompute import has_batch_norm, recompute
from .cascade import CascadeRoIHeads
from .semantic import SemanticFPN


def prepare_model(model: nn.Module, mixed: bool) -> None:
    """Bring a model into the form in which it trains, as its backbone's ``memory`` says.

    Call it once weights are loaded or a run is resumed, and before the first step: a trunk that
    is kept in fewer bits takes its weights then. Calling it again changes nothing. For evaluation
    alone there is no need of it.

    Args:
        model: of :func:`e3va.torchvision.build_model`, on its device.
        mixed: whether it trains in mixed precision.
    """
    backbone = model.backbone.bottom_up
    backbone.prepare(mixed)
    if backbone.memory != "lean":
        return
    recompute(model.backbone.fpn)
    for module in list(model.modules()):
        if isinstance(module, RegionProposalNetwork):
            recompute(module.head)
        elif isinstance(module, CascadeRoIHeads):
            recompute(module, "_run_stage")
            recompute(module, "_mask_loss")
        elif isinstance(module, RoIHeads):
            _recompute_chain(module.box_roi_pool, module.box_head, module.box_predictor)
            _recompute_chain(module.mask_roi_pool, module.mask_head, module.mask_predictor)
        elif isinstance(module, SemanticFPN):
            for level in module.sem_seg_head.levels:
                recompute(level)
            recompute(module, "_loss", runs=nn.Identity())


def _recompute_chain(*members: nn.Module | None) -> None:
    """Recompute modules that run one after another as one piece.

    torchvision's ``RoIHeads`` calls pooler, head and predictor in a function that does more. Here
    all but the last hand on what they get, and the last does the work of all.
    """
    if None in members or any(has_batch_norm(member) for member in members):
        return
    *first, last = members
    if "forward" in vars(last):
        return
    for member in first:
        member.forward = _HandOn(member)
    last.forward = _WholeChain(members)
    recompute(last)


class _HandOn:
    """A member's ``forward``: while training it gives its arguments, as a tuple."""

    def __init__(self, member: nn.Module):
        self.member = member

    def __call__(self, *args):
        if self.member.training and torch.is_grad_enabled():
            return args[0] if isinstance(args[0], tuple) else args
        return _own_forward(self.member, *args)


class _WholeChain:
    """The last member's ``forward``: of a tuple, the arguments of the first, it runs all."""

    def __init__(self, members: tuple[nn.Module, ...]):
        self.members = members

    def __call__(self, x):
        if not isinstance(x, tuple):
            return _own_forward(self.members[-1], x)
        for member in self.members:
            x = _own_forward(member, *x) if isinstance(x, tuple) else _own_forward(member, x)
        return x


def _own_forward(member: nn.Module, *args) -> Any:
    return type(member).forward(member, *args)
