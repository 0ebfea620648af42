"""What the files of a training record about its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..adapter_files.description import describe_model
from ..adapter_files.files import FULL_KEY
from ..highway.config import OUTSIDE
from ..model_zoo.trunks import DEMO, SCHEME
from .models import RANDOM, ModelConfig

FRAMEWORK = "torchvision"


def trunk_name(trunk: str) -> str:
    """Return the name of a trunk for files that leave this machine: a file without its folders."""
    return trunk if trunk in (DEMO, RANDOM) or trunk.startswith(SCHEME) else Path(trunk).name


def adapter_fields(
    config: ModelConfig, summary: str = "", steps: int | None = None, scores: Mapping | None = None
) -> dict[str, Any]:
    """Return the fields of :class:`e3va.adapter_files.description.AdapterConfig` of a training.

    Args:
        config: the model's config.
        summary: line about the training data; its path is shortened to the last name.
        steps: number of steps of the training.
        scores: scores on validation data.
    """
    path, colon, rest = summary.partition(": ")
    return {
        "framework": FRAMEWORK,
        "model": {**config.to_dict(), "trunk": trunk_name(config.trunk)},
        "classes": tuple(config.classes),
        "trained_on": f"{Path(path).name}{colon}{rest}" if colon else summary,
        "steps": steps,
        "scores": dict(scores or {}),
    }


def why_no_adapter(config: ModelConfig) -> str | None:
    """Return the reason why a model has no adapter files; None if it has some."""
    if config.highway.train_trunk:
        return "the trunk trains too, so the whole model is the result"
    if config.highway.adapter == OUTSIDE:
        return "its adapters come from outside the registry, so the whole model is the result"
    if config.trunk == RANDOM:
        return "its trunk is random, so the whole model is the result"
    return None


def checkpoint_entry(model: nn.Module, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the entry by which a checkpoint of a whole model describes its adapter and trunk.

    Args:
        model: the model. Without an entry: a trunk that trains, adapters from outside the registry.
        fields: the result of :func:`adapter_fields`.
    """
    backbone = model.backbone.bottom_up
    if not backbone.trunk.frozen or backbone.config.highway.adapter == OUTSIDE:
        return {}
    return {FULL_KEY: describe_model(model, **fields).to_dict()}
