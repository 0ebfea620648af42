"""Translation of a detector's neck and heads between the names of the two frameworks.

Torchvision and Detectron2 name the tensors differently and place the background differently:

- Class scores: background is the last class in Detectron2 and the first one in torchvision.
- Masks, and the boxes of a Mask R-CNN or Faster R-CNN (four numbers for each class): only torchvision has entries
  for background, which nothing reads. They are dropped on the way to Detectron2 and are zero on
  the way back.
- RetinaNet and FCOS have no background, and their pyramid begins at p3. Their tensors are only
  renamed.

docs/weights-and-adapters.md lists the differences that remain.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.errors import UserError, check_choice

FRAMEWORKS = ("torchvision", "detectron2")
BACKBONE = "backbone.bottom_up."  # trunk and highway: the same names in both frameworks
_SMALL_IMAGES = 400  # pixels of the shorter side

_BOTH = ("weight", "bias")
_BOX_HEADS = ("", ".0", ".1", ".2")  # the one of a Mask R-CNN, the three of a cascade
_BOX_PREDICTORS = tuple(f"roi_heads.box_predictor{stage}" for stage in _BOX_HEADS)
_MASK_PREDICTOR = "roi_heads.mask_head.predictor"  # Detectron2's name


def _table() -> dict[str, str]:
    """Return a dict from Detectron2's names of tensors to torchvision's, from p2 on."""
    names = {}

    def add(detectron2: str, torchvision: str, kinds: tuple[str, ...] = _BOTH) -> None:
        names.update({f"{detectron2}.{kind}": f"{torchvision}.{kind}" for kind in kinds})

    for level in range(4):
        add(f"backbone.fpn_lateral{level + 2}", f"backbone.fpn.inner_blocks.{level}.0")
        add(f"backbone.fpn_output{level + 2}", f"backbone.fpn.layer_blocks.{level}.0")
        for step in range(max(1, level)):
            # In Detectron2 norm and ReLU are parts of the convolution. At stride 4 there is one
            # layer; at greater strides an upsampling follows each layer.
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
    for layer in range(16):
        add(f"roi_heads.mask_head.mask_fcn{layer + 1}", f"roi_heads.mask_head.{layer}.0")
    add("roi_heads.mask_head.deconv", "roi_heads.mask_predictor.conv5_mask")
    add(_MASK_PREDICTOR, "roi_heads.mask_predictor.mask_fcn_logits")
    return names


def _one_stage_table(fcos: bool) -> dict[str, str]:
    """Return the same for RetinaNet or FCOS, from p3 on."""
    modules = {
        "head.cls_score": "head.classification_head.cls_logits",
        "head.bbox_pred": "head.regression_head.bbox_reg",
    }
    for level in range(3):
        modules[f"backbone.fpn_lateral{level + 3}"] = f"backbone.fpn.inner_blocks.{level}.0"
        modules[f"backbone.fpn_output{level + 3}"] = f"backbone.fpn.layer_blocks.{level}.0"
    for level in ("p6", "p7"):
        modules[f"backbone.top_block.{level}"] = f"backbone.fpn.extra_blocks.{level}"
    if fcos:
        modules["head.ctrness"] = "head.regression_head.bbox_ctrness"
    for theirs, ours in (("cls_subnet", "classification"), ("bbox_subnet", "regression")):
        for layer in range(4):
            # Convolution, GroupNorm and ReLU in FCOS; convolution and ReLU in RetinaNet.
            for place in (3 * layer, 3 * layer + 1) if fcos else (2 * layer,):
                own = place if fcos else f"{layer}.0"
                modules[f"head.{theirs}.{place}"] = f"head.{ours}_head.conv.{own}"
    return {f"{own}.{kind}": f"{other}.{kind}" for own, other in modules.items() for kind in _BOTH}


_TABLES = {"": _table(), "retinanet": _one_stage_table(False), "fcos": _one_stage_table(True)}
# Tensors that only one kind of model has, and every model of that kind.
_MARKS = {
    "retinanet": ("head.cls_subnet.2.weight", "head.classification_head.conv.0.0.weight"),
    "fcos": ("head.ctrness.weight", "head.regression_head.bbox_ctrness.weight"),
}


def _table_of(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the table for the kind of model that a state belongs to."""
    for kind, marks in reversed(_MARKS.items()):
        if any(mark in state for mark in marks):
            return _TABLES[kind]
    return _TABLES[""]


def smallest_anchor(size: int) -> int:
    """Return the smallest anchors' side in pixels in torchvision, for images of a shorter side."""
    return 32 if size >= _SMALL_IMAGES else 16


def framework_of(state: Mapping[str, Tensor]) -> str | None:
    """Return the framework of the names in ``state``; None if both frameworks have them."""
    table = _table_of(state)
    names = set(table.values())
    torchvision = [n for n in state if n in names and n not in table]
    detectron2 = [n for n in state if n in table and n not in names]
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
    """Translate a model's tensors to the names of a framework.

    The translation covers the FPN, the RPN, the heads of Faster R-CNN, Mask R-CNN and Cascade Mask
    R-CNN (box heads of two fully connected layers, masks for each class), those of RetinaNet without
    norms and of FCOS with GroupNorm (four convolutions each), and the head of semantic FPN with
    GroupNorm.

    Args:
        state: state dict of a model of either framework, with or without its trunk.
        framework: one of ``FRAMEWORKS``.

    Returns:
        the state under the framework's names, and the names in ``state`` without a counterpart. If
        there are such names, only the highway can be loaded.
    """
    check_choice("framework", framework, FRAMEWORKS)
    if framework_of(state) in (None, framework):
        return dict(state), ()
    names, others = _table_of(state), set()
    if framework == "torchvision":
        others = _of_other_heads(state)
    else:
        names = {theirs: own for own, theirs in names.items()}
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
    """Return names of box heads with one layer, and of class-agnostic masks or boxes."""
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
    """Move the background entries of a tensor with this Detectron2 name to their new place."""
    module = detectron2.rpartition(".")[0]
    if module.endswith(".cls_score"):
        return value.roll(-1 if framework == "detectron2" else 1, 0)
    count = {_MASK_PREDICTOR: 1, f"{_BOX_PREDICTORS[0]}.bbox_pred": 4}.get(module)
    if count is None:
        return value
    if framework == "detectron2":
        return value[count:].clone()  # not a view, which some writers of files refuse
    return torch.cat([value.new_zeros(count, *value.shape[1:]), value])
