"""The model of this framework that an adapter of either framework belongs to."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import without_trunk
from ..adapter_files.heads import to_framework
from ..backbone import trunk_prefix
from ..utils.errors import UserError
from .description import FRAMEWORK, trunk_name
from .models import HEADS, ModelConfig, build_model

# Detectron2's configs train on images of 480 to 800 pixels and evaluate at 800.
_AS_DETECTRON2: dict[str, Any] = {
    **{"size": 800, "max_size": 1333, "jitter": (0.6, 1.0)},
    "pooling": "aligned",
}
# A tensor that only one kind of model has; its rows are the classes, and the background or not.
_MARKS = {
    "mask_rcnn": ("roi_heads.box_predictor.cls_score.weight", 1),
    "cascade_mask_rcnn": ("roi_heads.box_predictor.0.cls_score.weight", 1),
    "semantic_fpn": ("sem_seg_head.predictor.weight", 0),
}
_LARGEST_SIDE = 16384  # pixels of an image


def fit_model(
    about: AdapterConfig, state: Mapping[str, Tensor], source: str
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the config of an adapter's model, and the adapter's tensors under its names.

    For an adapter of Detectron2 the kind and the widths of the model are read off the tensors;
    image sizes are those of Detectron2's configs, and category ids count from 1.

    Args:
        about: the adapter's description.
        state: the adapter's tensors, see :func:`e3va.adapter_files.files.read_adapter`.
        source: name of the adapter, for messages.

    Raises:
        UserError: the description is of no model of this framework, or it was altered.
    """
    if about.framework == FRAMEWORK:
        return _own_config(about, source), dict(state)
    mapped, unknown = to_framework(state, FRAMEWORK)
    config = None if unknown else _config_from_tensors(about, mapped)
    with torch.device("meta"):
        model = build_model(config) if config else None
    if model is None or not fits(model, mapped):
        raise UserError(
            f"{source} belongs to a model of {about.framework or 'another program'} that this "
            "framework does not have; e3va train --adapter can start from its backbone part"
        )
    return config, mapped


def _own_config(about: AdapterConfig, source: str) -> ModelConfig:
    config = ModelConfig.from_dict(about.model, source)
    backbone = about.backbone  # these settings have been checked
    config = replace(
        config, classes=about.classes, preset=backbone.preset, highway=backbone.highway
    )
    if not _is_sound(config):
        raise UserError(
            f"{source}: its model description cannot be read (a value is of another type or out "
            "of range): it was altered, or another program wrote it; copy or download it again"
        )
    return config


def _is_sound(config: ModelConfig) -> bool:
    """Check types and ranges of the fields, which anybody may have written into the file."""
    texts = (config.model, config.trunk, config.memory, config.trunk_precision)
    texts += (config.heads, config.pooling)
    sides = (config.size, config.max_size)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in sides)
        and isinstance(config.jitter, tuple)
        and len(config.jitter) == 2
        and all(isinstance(f, (int, float)) and 0 < f <= 8 for f in config.jitter)
        and isinstance(config.category_ids, tuple)
        and all(isinstance(number, int) for number in config.category_ids)
        and len(config.category_ids) in (0, len(config.classes))
    )


def recognize(state: Mapping[str, Tensor]) -> tuple[str | None, str | None]:
    """Return the kind of model (a key of ``MODELS``) and the widths of its heads (of ``HEADS``).

    Args:
        state: tensors under this framework's names.

    Returns:
        both; None in place of an unknown one.
    """
    kinds = [kind for kind, (mark, _) in _MARKS.items() if mark in state]
    lateral = state.get("backbone.fpn.inner_blocks.0.0.weight", ())
    widths = [name for name, sizes in HEADS.items() if sizes.channels == len(lateral)]
    return kinds[0] if len(kinds) == 1 else None, widths[0] if widths else None


def _config_from_tensors(about: AdapterConfig, state: Mapping[str, Tensor]) -> ModelConfig | None:
    kind, heads = recognize(state)
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


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter's tensors have the names and shapes of a model's."""
    own = without_trunk(model.state_dict(), trunk_prefix(model))
    return {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
