"""Which model of this framework an adapter is of, whichever framework wrote it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.heads import to_framework
from ..utils.errors import UserError
from .description import FRAMEWORK, trunk_name
from .models import HEADS, ModelConfig, build_model

# Detectron2's configs train on images of 480 to 800 pixels and evaluate at 800.
_AS_DETECTRON2: dict[str, Any] = {
    **{"size": 800, "max_size": 1333, "jitter": (0.6, 1.0)},
    "pooling": "aligned",
}
# Of each kind of model, a tensor that it alone has, whose rows are its classes (and background).
_MARKS = {
    "mask_rcnn": ("roi_heads.box_predictor.cls_score.weight", 1),
    "cascade_mask_rcnn": ("roi_heads.box_predictor.0.cls_score.weight", 1),
    "semantic_fpn": ("sem_seg_head.predictor.weight", 0),
}
_MOST_PIXELS = 16384  # of an image's side


def model_of(
    about: AdapterConfig, state: Mapping[str, Tensor], source: str
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The model that an adapter is of, and the adapter's tensors under this framework's names.

    An adapter of Detectron2 says by its tensors of which kind of model and how wide it is; sizes of
    images are then those of that framework's configs, and category ids count from 1.

    Args:
        about, state: of :func:`e3va.adapter_files.files.read_adapter`.
        source: names the adapter in errors.

    Raises:
        UserError: a description that cannot be one of this framework's models, or a model that this framework
            does not have.
    """
    if about.framework == FRAMEWORK:
        return _own(about, source), dict(state)
    mapped, left = to_framework(state, FRAMEWORK)
    config = None if left else _config_of(about, mapped)
    if config is None or not _fits(config, mapped, about.trunk_prefix):
        raise UserError(
            f"{source} is of a model of {about.framework or 'another program'} that this framework does not "
            "have; its backbone part can be used with e3va train --adapter"
        )
    return config, mapped


def _own(about: AdapterConfig, source: str) -> ModelConfig:
    config = ModelConfig.from_dict(about.model, source)
    own = about.backbone  # of which it is known that it is within bounds
    config = replace(config, classes=about.classes, preset=own.preset, highway=own.highway)
    if not _is_sound(config):
        raise UserError(
            f"{source}: its model description cannot be read (a value is of another type or out "
            "of range): it was altered, or another program wrote it; copy or download it again"
        )
    return config


def _is_sound(config: ModelConfig) -> bool:
    """Whether the entries that anybody may have written are of the types and in the ranges that
    building and running a model takes for granted."""
    texts = (config.model, config.trunk, config.memory, config.trunk_precision)
    texts += (config.heads, config.pooling)
    sides = (config.size, config.max_size)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(side, int) and 0 < side <= _MOST_PIXELS for side in sides)
        and isinstance(config.jitter, tuple)
        and len(config.jitter) == 2
        and all(isinstance(f, (int, float)) and 0 < f <= 8 for f in config.jitter)
        and isinstance(config.category_ids, tuple)
        and all(isinstance(number, int) for number in config.category_ids)
        and len(config.category_ids) in (0, len(config.classes))
    )


def recognise(state: Mapping[str, Tensor]) -> tuple[str | None, str | None]:
    """Of tensors under this framework's names, the kind of model (a key of ``MODELS``) and the widths of
    its heads (a key of ``HEADS``); None for what is neither known."""
    kinds = [kind for kind, (mark, _) in _MARKS.items() if mark in state]
    lateral = state.get("backbone.fpn.inner_blocks.0.0.weight", ())
    widths = [name for name, own in HEADS.items() if own.channels == len(lateral)]
    return kinds[0] if len(kinds) == 1 else None, widths[0] if widths else None


def _config_of(about: AdapterConfig, state: Mapping[str, Tensor]) -> ModelConfig | None:
    """The description of a model whose tensors have this framework's names; None if it has none such."""
    kind, heads = recognise(state)
    if kind is None or heads is None:
        return None
    mark, background = _MARKS[kind]
    count = len(state[mark]) - background
    classes = about.classes
    if len(classes) != count:
        classes = tuple(f"class {number}" for number in range(1, count + 1))
    return ModelConfig(
        model=kind,
        classes=classes,
        trunk=trunk_name(about.trunk.source),
        heads=heads,
        category_ids=() if kind == "semantic_fpn" else tuple(range(1, count + 1)),
        preset=about.backbone.preset,
        highway=about.backbone.highway,
        **_AS_DETECTRON2,
    )


def _fits(config: ModelConfig, state: Mapping[str, Tensor], prefix: str) -> bool:
    with torch.device("meta"):
        own = build_model(config).state_dict()
    shapes = {name: value.shape for name, value in own.items() if not name.startswith(prefix)}
    return shapes == {name: value.shape for name, value in state.items()}
