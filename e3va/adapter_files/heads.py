"""Neck and heads of a detector under the names of either framework.

torchvision's and Detectron2's modules compute the same from the same tensors but name them
differently, and differ in where the background class stands:

- Class scores: Detectron2 has background last, torchvision first.
- Masks, and the boxes of a Mask R-CNN, which has four numbers for each class: Detectron2 has
  entries for the classes alone, torchvision also for background. No loss and no prediction ever
  reads those: they are dropped on the way to Detectron2, and are zero on the way back.

So a state of Detectron2 comes back bit by bit, a state of torchvision in all that is ever used.

The same tensors under the other's names then give the same features, RPN outputs, class scores,
boxes and masks for each RoI, to rounding; what surrounds them is the framework's own:

- Anchors: torchvision rounds their corners to whole pixels, and its framework here starts from 16 pixels
  instead of Detectron2's 32 for images below 400. Rounding hardly matters; a factor of two does.
- Pooling of a Mask R-CNN: torchvision's has no half-pixel offset and 2 x 2 samples for each bin.
  Detectron2 finds the same with ``pooler_type="ROIAlign", sampling_ratio=2``, and loses accuracy
  with its default. A cascade pools alike in both.
- Masks are drawn into the image in different ways, which shifts their outlines a little.

``tests/detectron2/test_heads.py`` shows the first two, and that all else is the same.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.errors import UserError

FRAMEWORKS = ("torchvision", "detectron2")
BACKBONE = "backbone.bottom_up."  # trunk and highway, named alike in both frameworks
_SMALL_IMAGES = 400  # pixels of the shorter side

_BOTH = ("weight", "bias")
_MOST_MASK_LAYERS = 16
_BOX_HEADS = ("", ".0", ".1", ".2")  # a Mask R-CNN's, and a cascade's three
_BOX_PREDICTORS = tuple(f"roi_heads.box_predictor{stage}" for stage in _BOX_HEADS)
_MASK_PREDICTOR = "roi_heads.mask_head.predictor"  # Detectron2's name


def _table() -> dict[str, str]:
    """Detectron2's names of tensors → torchvision's."""
    names = {}

    def add(detectron2: str, torchvision: str, kinds: tuple[str, ...] = _BOTH) -> None:
        names.update({f"{detectron2}.{kind}": f"{torchvision}.{kind}" for kind in kinds})

    for level in range(4):
        add(f"backbone.fpn_lateral{level + 2}", f"backbone.fpn.inner_blocks.{level}.0")
        add(f"backbone.fpn_output{level + 2}", f"backbone.fpn.layer_blocks.{level}.0")
        for step in range(max(1, level)):
            # Detectron2 has a layer's norm and ReLU inside its convolution; at stride 4 there is
            # one layer, at greater ones an upsampling follows each.
            theirs = f"sem_seg_head.p{level + 2}.{2 * step}"
            ours = f"sem_seg_head.levels.{level}"
            add(theirs, f"{ours}.{4 * step}", ("weight",))
            add(f"{theirs}.norm", f"{ours}.{4 * step + 1}")
    add("sem_seg_head.predictor", "sem_seg_head.predictor")
    add("proposal_generator.rpn_head.conv", "rpn.head.conv.0.0")
    add("proposal_generator.rpn_head.objectness_logits", "rpn.head.cls_logits")
    add("proposal_generator.rpn_head.anchor_deltas", "rpn.head.bbox_pred")
    for stage, predictor in zip(_BOX_HEADS, _BOX_PREDICTORS, strict=True):
        add(f"roi_heads.box_head{stage}.fc1", f"roi_heads.box_head{stage}.fc6")
        add(f"roi_heads.box_head{stage}.fc2", f"roi_heads.box_head{stage}.fc7")
        add(f"{predictor}.cls_score", f"{predictor}.cls_score")
        add(f"{predictor}.bbox_pred", f"{predictor}.bbox_pred")
    for layer in range(_MOST_MASK_LAYERS):
        add(f"roi_heads.mask_head.mask_fcn{layer + 1}", f"roi_heads.mask_head.{layer}.0")
    add("roi_heads.mask_head.deconv", "roi_heads.mask_predictor.conv5_mask")
    add(_MASK_PREDICTOR, "roi_heads.mask_predictor.mask_fcn_logits")
    return names


_TO_TORCHVISION = _table()
_TO_DETECTRON2 = {theirs: own for own, theirs in _TO_TORCHVISION.items()}


def smallest_anchor(size: int) -> int:
    """Return the side in pixels of the smallest anchors in a detector of the torchvision framework.

    Args:
        size: shorter side of the images in pixels. Small images have smaller objects.
    """
    return 32 if size >= _SMALL_IMAGES else 16


def framework_of(state: Mapping[str, Tensor]) -> str | None:
    """Which of ``FRAMEWORKS`` the names in ``state`` are of; None if they could be of both.

    Raises:
        UserError: there are names of both.
    """
    torchvision = [n for n in state if n in _TO_DETECTRON2 and n not in _TO_TORCHVISION]
    detectron2 = [n for n in state if n in _TO_TORCHVISION and n not in _TO_DETECTRON2]
    if torchvision and detectron2:
        raise UserError(
            f"a state with torchvision's {torchvision[0]} and Detectron2's {detectron2[0]}: "
            "expected the names of one framework; save the state of one model"
        )
    if torchvision:
        return "torchvision"
    return "detectron2" if detectron2 else None


def to_framework(
    state: Mapping[str, Tensor], framework: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name a model's tensors as a framework does.

    What is mapped: FPN, RPN, the heads of Mask R-CNN and Cascade Mask R-CNN (box heads of two
    fully connected layers, masks for each class), and semantic FPN's with GroupNorm. A state of
    ``framework`` itself, and one of which nothing tells the framework, stays as it is.

    Args:
        state: of a model of either framework, with or without its trunk. It is not changed; tensors
            that are only renamed are shared with it.
        framework: one of ``FRAMEWORKS``.

    Returns:
        the state under the framework's names, and the names of ``state`` that have no counterpart
        there, in its order. With any of those it is another model that the framework would need, and
        :func:`e3va.adapter_files.files.backbone_part` is what can be loaded.

    Raises:
        UserError: an unknown framework, or names of both frameworks in ``state``.
    """
    if framework not in FRAMEWORKS:
        raise UserError(f"framework {framework!r}: expected one of {', '.join(FRAMEWORKS)}")
    if framework_of(state) in (None, framework):
        return dict(state), ()
    names, others = _TO_DETECTRON2, set()
    if framework == "torchvision":
        names, others = _TO_TORCHVISION, _of_other_heads(state)
    mapped, left = {}, []
    for name, value in state.items():
        if name.startswith(BACKBONE):
            mapped[name] = value
        elif name in names and name not in others:
            detectron2 = name if framework == "torchvision" else names[name]
            mapped[names[name]] = _move_background(detectron2, value, framework)
        else:
            left.append(name)
    return mapped, tuple(left)


def _of_other_heads(state: Mapping[str, Tensor]) -> set[str]:
    """Names of Detectron2's that torchvision's heads have too, but in another form than here:
    of one fully connected layer, of masks or a Mask R-CNN's boxes that are one for all classes."""
    modules = []
    for stage, predictor in zip(_BOX_HEADS, _BOX_PREDICTORS, strict=True):
        if f"roi_heads.box_head{stage}.fc2.weight" not in state:
            modules.append(f"roi_heads.box_head{stage}.fc1")
        if f"{predictor}.cls_score.weight" not in state:
            continue
        classes = len(state[f"{predictor}.cls_score.weight"]) - 1
        rows = {_MASK_PREDICTOR: classes}
        if not stage:
            rows[f"{predictor}.bbox_pred"] = 4 * classes
        for module, count in rows.items():
            weight = state.get(f"{module}.weight")
            if weight is not None and len(weight) != count:
                modules.append(module)
    return {f"{module}.{kind}" for module in modules for kind in _BOTH}


def _move_background(detectron2: str, value: Tensor, framework: str) -> Tensor:
    """A tensor with its background entries where ``framework`` has them, see the module.

    Args:
        detectron2: the tensor's name in Detectron2.
        value: the tensor in the other framework.
    """
    module = detectron2.rpartition(".")[0]
    predictor, _, what = module.rpartition(".")
    if predictor in _BOX_PREDICTORS and what == "cls_score":
        return value.roll(-1 if framework == "detectron2" else 1, 0)
    if module == _MASK_PREDICTOR:
        count = 1
    elif module == f"{_BOX_PREDICTORS[0]}.bbox_pred":
        count = 4
    else:
        return value
    if framework == "detectron2":
        return value[count:].clone()  # not a view, which some writers of files refuse
    return torch.cat([value.new_zeros(count, *value.shape[1:]), value])
