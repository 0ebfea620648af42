"""``memory="lean"`` for Detectron2's models: neck and heads recompute what they do not keep.

The recomputed parts are small, because each needs memory for all of its activations together.
"""

import contextlib
import copy

import torch
from detectron2.modeling import FPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..backbone import find_backbone
from ..ops.recompute import recompute
from .semantic import accept_unlabelled


def prepare_model(model: nn.Module, mixed: bool) -> None:
    """Bring a model into the form in which it trains, according to its backbone's ``memory``.

    Call it when the weights are loaded, and before the first step: it may store the trunk's weights
    in fewer bits. Parts of unknown types are not recomputed. The model must not be inside
    DistributedDataParallel; ``mixed`` says whether it trains in mixed precision.
    """
    for module in model.modules():
        if isinstance(module, SemSegFPNHead):
            accept_unlabelled(module)
    _, backbone = find_backbone(model)
    backbone.prepare(mixed)
    if backbone.memory != "lean":
        return
    for module in list(model.modules()):
        for kind, prepare in _PARTS.items():
            if isinstance(module, kind):
                prepare(module)


class LeanPyramid:
    """Replacement of an FPN's ``forward`` that runs the backbone once and recomputes the rest.

    FPN calls its backbone itself. So a second FPN shares all layers of the first, except that its
    backbone is the identity: ``top_down``, which can be recomputed.
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


def _prepare_fpn(fpn: FPN) -> None:
    if type(fpn).forward is FPN.forward and "forward" not in vars(fpn):
        pyramid = LeanPyramid(fpn)
        if recompute(pyramid.top_down):
            fpn.forward = pyramid


def _prepare_roi_heads(heads: StandardROIHeads) -> None:
    box = nn.ModuleList([heads.box_head, heads.box_predictor])
    plain = type(heads)._forward_box is StandardROIHeads._forward_box
    if isinstance(heads, CascadeROIHeads):
        recompute(heads, "_run_stage", runs=box)
    elif plain and not heads.train_on_pred_boxes:  # the second run would get other boxes
        recompute(heads, "_forward_box", runs=box, contexts=_log_once)
    else:
        recompute(heads.box_head)
    for kind in ("mask", "keypoint"):
        if getattr(heads, f"{kind}_on"):
            head = getattr(heads, f"{kind}_head")
            recompute(heads, f"_forward_{kind}", runs=head, contexts=_log_once)


def _log_once() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    # The losses log metrics. The second run logs into a storage that nobody reads, because each
    # value would count twice in the trainer's. It has the trainer's iteration, because the mask
    # loss draws pictures at some iterations.
    return contextlib.nullcontext(), EventStorage(get_event_storage().iter)


class LeanDenseHead:
    """Replacement of the ``forward`` of RetinaNet's or FCOS's head.

    It recomputes the classes of one level, or its boxes with FCOS's centerness, at a time.
    """

    def __init__(self, head: RetinaNetHead):
        self.head = head
        self.classes = _Branch(head.cls_subnet, head.cls_score)
        boxes = (head.bbox_pred, head.ctrness) if isinstance(head, FCOSHead) else (head.bbox_pred,)
        self.boxes = _Branch(head.bbox_subnet, *boxes)

    def __call__(self, features: list[Tensor]) -> tuple[list[Tensor], ...]:
        """Map features [B, C, H, W] of each level to logits and box deltas, see the head's own."""
        results = []
        for branch in (self.classes, self.boxes):
            branch.training = self.head.training
            results += zip(*map(branch, features), strict=True)
        return tuple(map(list, results))


class _Branch(nn.Module):
    """Layers and the predictors that share their result."""

    def __init__(self, layers: nn.Module, *predictors: nn.Module):
        super().__init__()
        self.layers, self.predictors = layers, nn.ModuleList(predictors)

    def forward(self, feature: Tensor) -> tuple[Tensor, ...]:
        shared = self.layers(feature)
        return tuple(predict(shared) for predict in self.predictors)


def _prepare_dense_head(head: RetinaNetHead) -> None:
    own = type(head).forward in (RetinaNetHead.forward, FCOSHead.forward)
    if not own:
        recompute(head.cls_subnet)
        recompute(head.bbox_subnet)
    elif "forward" not in vars(head):
        lean = LeanDenseHead(head)
        if recompute(lean.classes) and recompute(lean.boxes):
            head.forward = lean


class _LossContexts:
    """Contexts for the loss of a dense detector, which averages the number of objects over steps.

    The second run starts from the same average as the first and does not change it. Both run
    without TorchScript's optimization, because a function that is compiled between the two runs
    keeps other tensors in the second than in the first.
    """

    def __init__(self, model: DenseDetector):
        self.model = model

    def __call__(self) -> tuple[contextlib.AbstractContextManager, ...]:
        second = _SecondLoss(self.model, vars(self.model).get(_AVERAGE), get_event_storage().iter)
        return torch.jit.optimized_execution(False), second


class _SecondLoss(contextlib.ExitStack):
    """Context for the second run of a dense detector's loss; it can be entered repeatedly."""

    def __init__(self, model: DenseDetector, before: float | None, iteration: int):
        super().__init__()
        self.model, self.before, self.iteration = model, before, iteration

    def __enter__(self) -> "_SecondLoss":
        attributes = vars(self.model)
        self.callback(attributes.__setitem__, _AVERAGE, attributes.pop(_AVERAGE))
        if self.before is not None:
            attributes[_AVERAGE] = self.before
        self.enter_context(EventStorage(self.iteration))
        self.enter_context(torch.jit.optimized_execution(False))
        return self


_AVERAGE = "loss_normalizer"  # the attribute of Detectron2's dense detectors


def _prepare_dense_detector(model: DenseDetector) -> None:
    if type(model).losses in (RetinaNet.losses, FCOS.losses):
        recompute(model, "losses", runs=nn.Identity(), contexts=_LossContexts(model))


def _prepare_semantic(head: SemSegFPNHead) -> None:
    for level in head.scale_heads:
        recompute(level)
    # The loss keeps log-probabilities of all classes at the image's full size.
    recompute(head, "losses", runs=nn.Identity())


_PARTS = {
    FPN: _prepare_fpn,
    RPN: lambda rpn: recompute(rpn.rpn_head),
    StandardROIHeads: _prepare_roi_heads,
    RetinaNetHead: _prepare_dense_head,
    DenseDetector: _prepare_dense_detector,
    SemSegFPNHead: _prepare_semantic,
}
