"""What files record about a model of this framework, and the model that an adapter belongs to."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig, describe_model
from ..adapter_files.files import FULL_KEY, without_trunk
from ..adapter_files.heads import to_framework
from ..backbone import trunk_prefix
from ..highway.config import OUTSIDE
from ..model_zoo.rows import SCHEMES
from ..utils.errors import UserError
from .models import DEMO_TRUNK, HEADS, RANDOM, ModelConfig, build_model

FRAMEWORK = "torchvision"
# Detectron2's configs train on images of 480 to 800 pixels and evaluate at 800.
_AS_DETECTRON2 = {"size": 800, "max_size": 1333, "jitter": (0.6, 1.0), "pooling": "aligned"}


class _Marks(NamedTuple):
    """Tensors by which a kind of model is recognized."""

    names: tuple[str, ...]  # the first one's rows are the classes
    absent: tuple[str, ...] = ()
    background: int = 1  # rows of the background
    rows: int = 1  # rows of each class


_BOXES, _CASCADE = (f"roi_heads.box_predictor{stage}.cls_score.weight" for stage in ("", ".0"))
_MASKS = "roi_heads.mask_predictor.mask_fcn_logits.weight"
_ONE_STAGE = "head.classification_head.cls_logits.weight"
_CENTERNESS = "head.regression_head.bbox_ctrness.weight"
_MARKS = {
    "mask_rcnn": _Marks((_BOXES, _MASKS)),
    "cascade_mask_rcnn": _Marks((_CASCADE, _MASKS)),
    "faster_rcnn": _Marks((_BOXES,), absent=(_MASKS,)),
    "retinanet": _Marks((_ONE_STAGE,), absent=(_CENTERNESS,), background=0, rows=9),
    "fcos": _Marks((_ONE_STAGE, _CENTERNESS), background=0),
    "semantic_fpn": _Marks(("sem_seg_head.predictor.weight",), background=0),
}


def _trunk_name(trunk: str) -> str:
    """Return the name of a trunk for files that leave this machine: a file without its folders."""
    return trunk if trunk in (DEMO_TRUNK, RANDOM) or trunk.startswith(SCHEMES) else Path(trunk).name


def adapter_fields(
    config: ModelConfig, summary: str, steps: int | None, scores: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return the fields of an ``AdapterConfig``; ``summary`` is the line about the data."""
    path, colon, rest = summary.partition(": ")
    return {
        "framework": FRAMEWORK,
        "model": {**config.to_dict(), "trunk": _trunk_name(config.trunk)},
        "classes": tuple(config.classes),
        "trained_on": f"{Path(path).name}{colon}{rest}" if colon else summary,
        "steps": steps,
        "scores": dict(scores or {}),
    }


def why_no_adapter(config: ModelConfig) -> str | None:
    """Return the reason why a model has no adapter files; None if it has some."""
    if config.highway.train_trunk:
        reason = "the trunk trains too"
    elif config.highway.adapter == OUTSIDE:
        reason = "its adapters come from outside the registry"
    elif config.trunk == RANDOM:
        reason = "its trunk is random"
    else:
        return None
    return f"{reason}, so the whole model is the result"


def checkpoint_entry(model: nn.Module, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's entry about adapter and trunk, ``{}`` if the model has no adapter."""
    backbone = model.backbone.bottom_up
    if not backbone.trunk.frozen or backbone.config.highway.adapter == OUTSIDE:
        return {}
    return {FULL_KEY: describe_model(model, **fields).to_dict()}


def fit_model(
    about: AdapterConfig, state: Mapping[str, Tensor], source: str
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the config of an adapter's model, and the adapter's tensors under its names.

    For an adapter of Detectron2 the kind and the widths of the model are read off the tensors;
    image sizes are those of Detectron2's configs, and category ids count from 1.
    """
    if about.framework == FRAMEWORK:
        checked = {
            "classes": about.classes,
            "preset": asdict(about.backbone.preset),
            "highway": about.backbone.highway.to_dict(),
        }
        return ModelConfig.from_dict({**about.model, **checked}, source), dict(state)
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


def recognize(state: Mapping[str, Tensor]) -> tuple[str | None, str | None]:
    """Return the kind of model (in ``MODELS``) and the widths of its heads (in ``HEADS``)."""
    kinds = [
        kind
        for kind, marks in _MARKS.items()
        if all(name in state for name in marks.names)
        and not any(name in state for name in marks.absent)
    ]
    lateral = state.get("backbone.fpn.inner_blocks.0.0.weight", ())
    widths = [name for name, sizes in HEADS.items() if sizes.channels == len(lateral)]
    return kinds[0] if len(kinds) == 1 else None, widths[0] if widths else None


def _config_from_tensors(about: AdapterConfig, state: Mapping[str, Tensor]) -> ModelConfig | None:
    kind, heads = recognize(state)
    if kind is None or heads is None:
        return None
    marks = _MARKS[kind]
    count = len(state[marks.names[0]]) // marks.rows - marks.background
    numbers = tuple(range(1, count + 1))
    fitting = len(about.classes) == len(numbers)
    return ModelConfig(
        model=kind,
        classes=about.classes if fitting else tuple(f"class {number}" for number in numbers),
        trunk=_trunk_name(about.trunk.source),
        heads=heads,
        category_ids=() if kind == "semantic_fpn" else numbers,
        preset=about.backbone.preset,
        highway=about.backbone.highway,
        **_AS_DETECTRON2,
    )


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter's tensors have the names and shapes of a model's."""
    own = without_trunk(model.state_dict(), trunk_prefix(model))
    return {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
