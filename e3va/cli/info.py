"""What ``e3va info`` says of a file: a trained model, an adapter, or a pretrained Swin."""

from argparse import Namespace
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
from ..swin.presets import preset_name
from ..swin.trunk import SwinTrunk
from ..torchvision.loading import find_saved, open_trunk
from ..torchvision.models import ModelConfig, build_model, describe, model_parts
from ..utils.measure import MIB, count_parameters, parameter_table
from ..weights.checkpoint import load_file, load_safetensors, model_state
from ..weights.loading import find_trunk, load_trunk, missing_trunk, read_geometry, trunk_state
from ..weights.origin import TrunkOrigin


def info(args: Namespace) -> None:
    """``e3va info``."""
    path = find_saved(args.file)
    if path.is_dir() or is_adapter(path):
        _say_adapter(path, args)
        return
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors" and path.is_file():
        data, metadata = load_safetensors(path)
    else:
        data = load_file(path)
    print(f"{path}: {path.stat().st_size / MIB:.1f} MiB")
    if isinstance(data.get("config"), dict):
        _say_model(data, str(path))
        return
    state = model_state(data, str(path))
    count = sum(t.numel() for t in state.values())
    print(f"weights: {len(state)} tensors, {count:,} numbers")
    if FULL_KEY in data:
        print("a whole model, which says of itself:")
        _say_description(AdapterConfig.from_dict(dict(data[FULL_KEY]), str(path)))
    else:
        _say_swin(state, str(path))
    for key, value in metadata.items():
        print(f"{key:<14}{value}")


def _say_swin(state: Mapping[str, Tensor], source: str) -> None:
    prefix = find_trunk(state, source)
    if prefix is None:
        print(missing_trunk(state, source).line)
        return
    trunk = SwinTrunk(read_geometry(trunk_state(state, prefix), source))
    loaded = load_trunk(trunk, state, source)
    name = preset_name(trunk.preset) or "of no known size"
    print(f"holds the Swin {name} ({trunk.preset}), {prefix=}")
    print(f"{'layout':<14}{loaded.layout}")
    print(f"{'fingerprint':<14}{trunk.origin.fingerprint}")


def _say_model(data: dict[str, Any], source: str) -> None:
    config = ModelConfig.from_dict(data["config"], source)
    print(describe(config))
    origin = recorded_origin(data)
    if origin:
        _say_trunk(origin)
    about = data.get("data", {})
    print(f"{'trained on':<14}{about.get('summary', 'unknown')}")
    print(f"{'steps':<14}{data.get('step')}")
    for name, value in (data.get("scores") or {}).items():
        print(f"{name:<14}{value:.1f}")
    with torch.device("meta"):
        model = build_model(config)
    print(parameter_table(count_parameters(model, model_parts(model))))


def _say_adapter(path: Path, args: Namespace) -> None:
    state, about = read_adapter(path)
    folder = path if path.is_dir() else path.parent
    sizes = [(folder / name).stat().st_size / MIB for name in (MODEL_FILE, CONFIG_FILE)]
    print(f"{folder}: adapter, {sum(sizes):.1f} MiB")
    _say_description(about)
    if args.trunk:
        trunk = open_trunk(about, path, args.trunk, args.any_trunk, "fp32")
        same = trunk.origin.fingerprint == about.trunk.fingerprint
        print(f"{args.trunk} is {'the' if same else 'NOT the'} trunk that it was trained on")
    highway = sum(value.numel() for value in backbone_part(state, about)[0].values())
    rest = sum(value.numel() for value in state.values()) - highway
    for part, count in (("highway", highway), ("neck, heads", rest)):
        print(f"{part:<14}{count:,} numbers")


def _say_description(about: AdapterConfig) -> None:
    own = about.backbone
    name = preset_name(own.preset) or "a Swin"
    rows = {
        "written by": f"e3va {about.library_version}",
        "framework": about.framework or "none",
        "model": about.model.get("model") or about.model.get("config") or "unknown",
        "preset": f"{name} ({own.preset})",
        "highway": own.highway,
        "classes": ", ".join(about.classes) or "unknown",
    }
    for key, value in rows.items():
        print(f"{key:<14}{value}")
    _say_trunk(about.trunk)
    print(f"{'trained on':<14}{about.trained_on or 'unknown'}")
    print(f"{'steps':<14}{'unknown' if about.steps is None else about.steps}")
    for key, value in about.scores.items():
        print(f"{key:<14}{value:.1f}")


def _say_trunk(origin: TrunkOrigin) -> None:
    print(f"{'trunk':<14}{origin.source}, kept as {origin.stored} while it trained")
    print(f"{'fingerprint':<14}{origin.fingerprint}")
