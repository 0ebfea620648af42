"""The memory mode ``lean`` of this framework's models: neck and heads recompute their activations.

A whole piece is in memory while it is recomputed, so pieces are small where that costs little.
"""

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from ..ops.recompute import has_batch_norm, recompute
from .cascade import CascadeRoIHeads
from .semantic import SemanticFPN


def prepare_model(model: nn.Module, mixed: bool) -> None:
    """Prepare a model for training in the ``memory`` mode of its backbone.

    Call it after the weights are loaded and before the first step, with ``mixed`` for mixed
    precision: a trunk that is stored in fewer bits is rounded here. A second call changes nothing.
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
        elif isinstance(module, (RetinaNet, FCOS)):
            recompute(module.head.classification_head)
            recompute(module.head.regression_head)
            recompute(module.head, "compute_loss", runs=nn.Identity())
        elif isinstance(module, SemanticFPN):
            for level in module.sem_seg_head.levels:
                recompute(level)
            recompute(module, "_loss", runs=nn.Identity())


def _recompute_chain(*members: nn.Module | None) -> None:
    """Recompute modules that run one after another as one piece.

    torchvision's ``RoIHeads`` calls pooler, head and predictor in a function that does more.
    """
    if None in members or any(has_batch_norm(member) for member in members):
        return
    if "forward" not in vars(members[-1]):
        for place, member in enumerate(members):
            member.forward = _Chained(members, place)
        recompute(members[-1])


class _Chained:
    """The ``forward`` of one module of a chain: in training, the last one runs the whole chain.

    The other modules then return their arguments as a tuple for the last one.
    """

    def __init__(self, members: tuple[nn.Module, ...], place: int):
        self.members, self.place = members, place

    def __call__(self, *args):
        own, passed_on = self.members[self.place], isinstance(args[0], tuple)
        args = args[0] if passed_on else args
        last = self.place == len(self.members) - 1
        if not last and own.training and torch.is_grad_enabled():
            return args
        for member in self.members if passed_on else (own,):
            args = (type(member).forward(member, *args),)
        return args[0]
