"""``memory="lean"`` for Detectron2's models: neck and heads compute again what they do not keep.

What is recomputed at once is what is in memory at once, so the pieces are small where their seams
cost little.
"""

import contextlib

import torch.distributed
from detectron2.modeling import FPN
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..backbone import find_backbone
from ..ops.recompute import recompute
from .pyramid import LeanPyramid


def prepare_model(model: nn.Module, mixed: bool) -> None:
    """Bring a model into the form in which it trains, as its backbone's ``memory`` says.

    Call it once weights are loaded or a run is resumed, and before the first step: a trunk that
    is kept in fewer bits takes its weights then. Calling it again changes nothing. For evaluation
    alone there is no need of it.

    Args:
        model: a Detectron2 model, not inside DistributedDataParallel; of parts that are not known
            here, nothing is recomputed.
        mixed: whether it trains in mixed precision.

    Raises:
        UserError: the model has no E³VA backbone.
    """
    _, backbone = find_backbone(model)
    backbone.prepare(mixed)
    if backbone.memory != "lean":
        return
    for module in list(model.modules()):
        for kind, prepare in _PARTS.items():
            if isinstance(module, kind):
                prepare(module)


def _prepare_fpn(fpn: FPN) -> None:
    if type(fpn).forward is FPN.forward and "forward" not in vars(fpn):
        pyramid = LeanPyramid(fpn)
        if recompute(pyramid.top_down):
            fpn.forward = pyramid


def _prepare_rpn(rpn: RPN) -> None:
    recompute(rpn.rpn_head)


def _prepare_roi_heads(heads: StandardROIHeads) -> None:
    box = nn.ModuleList([heads.box_head, heads.box_predictor])
    plain = type(heads)._forward_box is StandardROIHeads._forward_box
    if isinstance(heads, CascadeROIHeads):
        recompute(heads, "_run_stage", runs=box)
    elif plain and not heads.train_on_pred_boxes:  # which would give the second run other boxes
        recompute(heads, "_forward_box", runs=box, contexts=_log_once)
    else:
        recompute(heads.box_head)
    for kind in ("mask", "keypoint"):
        if getattr(heads, f"{kind}_on"):
            head = getattr(heads, f"{kind}_head")
            recompute(heads, f"_forward_{kind}", runs=head, contexts=_log_once)


def _log_once() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    # The losses log metrics. Those of the second run go into a storage that nobody reads: in the
    # trainer's, each value would count twice. It has the trainer's iteration, on which it depends
    # whether the mask loss draws pictures.
    return contextlib.nullcontext(), EventStorage(get_event_storage().iter)


def _prepare_retinanet(head: RetinaNetHead) -> None:
    recompute(head.cls_subnet)
    recompute(head.bbox_subnet)


def _prepare_semantic(head: SemSegFPNHead) -> None:
    for level in head.scale_heads:
        recompute(level)
    # The loss keeps log-probabilities of all classes at the image's full size.
    recompute(head, "losses", runs=nn.Identity())


_PARTS = {
    FPN: _prepare_fpn,
    RPN: _prepare_rpn,
    StandardROIHeads: _prepare_roi_heads,
    RetinaNetHead: _prepare_retinanet,
    SemSegFPNHead: _prepare_semantic,
}


def leave_trunk_out_of_ddp(model: nn.Module) -> None:
    """Let DistributedDataParallel, which is to be put around the model, not know a frozen trunk.

    It keeps a reference to every parameter that it knows, so that those which
    :func:`prepare_model` replaces would stay in memory. What it does for a frozen parameter, which
    is to give it the first process's value at the start, is done here.
    """
    trunk = find_backbone(model)[1].trunk
    if not trunk.frozen:
        return
    names = {id(module): name for name, module in model.named_modules()}
    own = [*trunk.named_parameters(), *trunk.named_buffers()]
    for _, tensor in own:
        torch.distributed.broadcast(tensor.detach(), 0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        model, [f"{names[id(trunk)]}.{name}" for name, _ in own]
    )
