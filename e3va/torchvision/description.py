"""What the files of a training say of it: the arguments of :func:`e3va.adapter_files.files.save_adapter`."""

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
    """How files that leave this machine name a trunk: a file without its folders."""
    return trunk if trunk in (DEMO, RANDOM) or trunk.startswith(SCHEME) else Path(trunk).name


def about(
    config: ModelConfig, summary: str = "", steps: int | None = None, scores: Mapping | None = None
) -> dict[str, Any]:
    """What an adapter's description says beside its backbone and trunk.

    Args:
        config: of the model.
        summary: of the training data; folders in it are left out.
        steps: of training.
        scores: on validation data.
    """
    return {
        "framework": FRAMEWORK,
        "model": {**config.to_dict(), "trunk": trunk_name(config.trunk)},
        "classes": tuple(config.classes),
        "trained_on": _without_folders(summary),
        "steps": steps,
        "scores": dict(scores or {}),
    }


def _without_folders(summary: str) -> str:
    path, colon, rest = summary.partition(": ")
    return f"{Path(path).name}{colon}{rest}" if colon else summary


def why_no_adapter(config: ModelConfig) -> str | None:
    """Why a model of ``config`` has no adapter files, for people; None if it has some."""
    if config.highway.train_trunk:
        return "the trunk trains too, so the whole model is the result"
    if config.highway.adapter == OUTSIDE:
        return "its adapters come from outside the registry: the whole model is the result"
    if config.trunk == RANDOM:
        return "its trunk is random, so nobody else has it: the whole model is the result"
    return None


def whole_entry(model: nn.Module, said: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of the whole model says of itself: ``said``, see :func:`about`, and which
    trunk is inside; nothing if that trains, or if the adapters are of no registered kind."""
    backbone = model.backbone.bottom_up
    if not backbone.trunk.frozen or backbone.config.highway.adapter == OUTSIDE:
        return {}
    return {FULL_KEY: describe_model(model, **said).to_dict()}
