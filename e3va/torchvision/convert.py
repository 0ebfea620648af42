"""Conversion of a whole model to its adapter and back; all tensors come back to the bit.

A model of Detectron2 is only a dict of tensors here.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import FULL_KEY, read_adapter, split
from ..adapter_files.trunk import build_trunk
from ..backbone import BackboneConfig
from ..model_zoo.trunks import read_trunk_file
from ..utils.errors import UserError
from ..weights.checkpoint import model_state
from ..weights.origin import TrunkOrigin
from .description import FRAMEWORK, adapter_fields, why_no_adapter
from .loading import whole_state
from .models import DEMO_TRUNK, ModelConfig

_HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def to_checkpoint(
    path: Path, trunk: str | None = None, any_trunk: bool = False
) -> tuple[dict[str, Any], AdapterConfig]:
    """Return the checkpoint of the whole model of an adapter, and the adapter's description."""
    adapter, config = read_adapter(path)
    state, _ = whole_state(adapter, config, path, trunk, any_trunk)
    data: dict[str, Any] = {"model": state, FULL_KEY: config.to_dict()}
    if config.framework == FRAMEWORK:
        data["config"] = ModelConfig.from_dict(config.model, str(path)).to_dict()
        data["data"] = {"summary": config.trained_on}
        data["step"], data["scores"] = config.steps, config.scores
    return data, config


def to_adapter(
    data: Mapping[str, Any], source: str, trunk: str | None = None
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Return the tensors and the description of the adapter in a whole model's checkpoint.

    ``trunk`` is the trunk of the training; None if the checkpoint records it.
    """
    state = model_state(data, source)
    adapter, config = split(data, state, source)
    recorded = FULL_KEY in data
    if isinstance(data.get("config"), Mapping):
        own = ModelConfig.from_dict(dict(data["config"]), source)
        reason = why_no_adapter(own)
        if reason:
            raise UserError(f"{source} has no adapter: {reason}")
        if not recorded:  # the file is older than adapter files
            summary = (data.get("data") or {}).get("summary", "")
            described = adapter_fields(own, summary, data.get("step"), data.get("scores"))
            config = replace(config, backbone=BackboneConfig(own.preset, own.highway), **described)
            if own.trunk == DEMO_TRUNK or Path(own.trunk).is_file():
                trunk = trunk or own.trunk
    if trunk:
        config = replace(config, trunk=_compare_trunk(config, state, trunk, source, recorded))
    elif not recorded:
        raise UserError(
            f"{source} does not record the pretrained trunk of its training: give the trunk with "
            "--trunk FILE"
        )
    return adapter, config


def _compare_trunk(
    config: AdapterConfig, state: Mapping[str, Tensor], given: str, source: str, recorded: bool
) -> TrunkOrigin:
    """Return the origin of the trunk in ``state``; raise a UserError unless it is ``given``.

    Both are compared to the bit, in each form in which the training may have stored its trunk.
    """
    weights, name = read_trunk_file(given)
    inside = {k: v for k, v in state.items() if k.startswith(config.trunk_prefix)}
    halves = {_HALF[value.dtype] for value in inside.values() if value.dtype in _HALF}
    rest = halves.pop() if halves else "fp32"
    for stored in (config.trunk.stored,) if recorded else (rest, f"int8 {rest}"):
        trunk = build_trunk(config, weights, name, any_trunk=True, stored=stored)
        own = {config.trunk_prefix + key: value for key, value in trunk.state_dict().items()}
        if own.keys() == inside.keys() and all(
            own[k].dtype == inside[k].dtype and torch.equal(own[k], inside[k]) for k in own
        ):
            return trunk.origin
    trained = f"the trunk {_name(config.trunk)}" if recorded else "another trunk"
    raise UserError(
        f"{source} was trained on {trained}, not on {_name(trunk.origin)}: give the trunk of its "
        "training with --trunk FILE"
    )


def _name(origin: TrunkOrigin) -> str:
    return f"{origin.source} (fingerprint {origin.short})"
