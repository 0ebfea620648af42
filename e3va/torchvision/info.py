"""Descriptions of files: trained models, adapters, and pretrained Swins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import (
    CONFIG_FILE,
    FULL_KEY,
    MODEL_FILE,
    backbone_part,
    is_adapter,
    read_adapter,
    recorded_origin,
)
from ..swin.presets import SwinPreset, preset_name
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from ..utils.measure import MIB, count_parameters, parameter_table
from ..weights.checkpoint import load_file, load_safetensors, model_state
from ..weights.loading import find_trunk, load_trunk, missing_trunk, read_geometry, trunk_state
from ..weights.origin import TrunkOrigin
from .loading import find_saved, open_trunk
from .models import ModelConfig, build_model, model_parts


def describe_file(path: str | Path, trunk: str | None = None, any_trunk: bool = False) -> list[str]:
    """Describe a trained model, an adapter or pretrained weights in lines of text.

    ``trunk`` is compared with the trunk of an adapter's training.
    """
    path = find_saved(path)
    if path.is_dir() or is_adapter(path):
        return _adapter(path, trunk, any_trunk)
    tensors_only = path.suffix == ".safetensors" and path.is_file()
    data, metadata = load_safetensors(path) if tensors_only else (load_file(path), {})
    if trunk:
        raise UserError(f"--trunk {trunk}: {path} is no adapter; expected one, to compare trunks")
    lines = [f"{path}: {path.stat().st_size / MIB:.1f} MiB"]
    if isinstance(data.get("config"), dict):
        return lines + _model(data, str(path))
    state = model_state(data, str(path))
    lines.append(f"weights: {len(state)} tensors, {_count(state)}")
    if FULL_KEY in data:
        config = AdapterConfig.from_dict(dict(data[FULL_KEY]), str(path))
        lines += ["a whole model, with this description:", *_rows(_description(config))]
    else:
        lines += _swin(state, str(path))
    return lines + _rows(metadata)


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a model's config in the form that people read."""
    lists = {name: ", ".join(map(str, v)) for name, v in vars(config).items() if type(v) is tuple}
    return {**vars(config), **lists, "preset": _preset(config.preset)}


def _rows(rows: Mapping[str, Any]) -> list[str]:
    return [f"{name:<14}{' ' * (len(name) > 13)}{value}" for name, value in rows.items()]


def _preset(preset: SwinPreset) -> str:
    return f"{preset_name(preset) or 'a Swin'} ({preset})"


def _count(state: Mapping[str, Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in state.values()):,} numbers"


def _swin(state: Mapping[str, Tensor], source: str) -> list[str]:
    prefix = find_trunk(state, source)
    if prefix is None:
        return [missing_trunk(state, source).line]
    trunk = SwinTrunk(read_geometry(trunk_state(state, prefix), source))
    loaded = load_trunk(trunk, state, source)
    name = preset_name(trunk.preset) or "of no known size"
    rows = {"layout": loaded.layout, "fingerprint": trunk.origin.fingerprint}
    return [f"holds the Swin {name} ({trunk.preset}), {prefix=}", *_rows(rows)]


def _model(data: Mapping[str, Any], source: str) -> list[str]:
    config = ModelConfig.from_dict(data["config"], source)
    origin = recorded_origin(data)
    rows = {
        **describe_config(config),
        **(_trunk(origin) if origin else {}),
        "trained on": data.get("data", {}).get("summary", "unknown"),
        "steps": data.get("step"),
        **_scores(data.get("scores") or {}),
    }
    with torch.device("meta"):
        model = build_model(config)
    table = parameter_table(count_parameters(model, model_parts(model)))
    return [*_rows(rows), *table.splitlines()]


def _adapter(path: Path, given: str | None, any_trunk: bool) -> list[str]:
    state, config = read_adapter(path)
    folder = path if path.is_dir() else path.parent
    size = sum((folder / name).stat().st_size / MIB for name in (MODEL_FILE, CONFIG_FILE))
    lines = [f"{folder}: adapter, {size:.1f} MiB", *_rows(_description(config))]
    if given:
        trunk = open_trunk(config, path, given, any_trunk, "fp32")
        same = trunk.origin.fingerprint == config.trunk.fingerprint
        lines.append(f"{given} is {'the' if same else 'NOT the'} trunk of the adapter's training")
    highway, _ = backbone_part(state, config)
    rest = {name: value for name, value in state.items() if name not in highway}
    return lines + _rows({"highway": _count(highway), "neck, heads": _count(rest)})


def _description(config: AdapterConfig) -> dict[str, Any]:
    return {
        "written by": f"e3va {config.library_version}",
        "framework": config.framework or "none",
        "model": config.model.get("model") or config.model.get("config") or "unknown",
        "preset": _preset(config.backbone.preset),
        "highway": config.backbone.highway,
        "classes": ", ".join(config.classes) or "unknown",
        **_trunk(config.trunk),
        "trained on": config.trained_on or "unknown",
        "steps": "unknown" if config.steps is None else config.steps,
        **_scores(config.scores),
    }


def _trunk(origin: TrunkOrigin) -> dict[str, str]:
    stored = f"{origin.source}, stored as {origin.stored} in training"
    return {"trunk": stored, "fingerprint": origin.fingerprint}


def _scores(scores: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in scores.items()}
