"""Trained models from their files: whole models, and adapters over the trunk they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.adapter_set import AdapterSet
from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import FULL_KEY, is_adapter, read_adapter, read_config, recorded_origin
from ..adapter_files.trunk import build_trunk
from ..model_zoo.resolve import local_path
from ..model_zoo.trunks import SCHEME, find_trunk_of
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from .description import FRAMEWORK
from .fitting import model_of
from .models import ModelConfig, build_model, load_state


def find_saved(path: str | Path) -> Path:
    """The file or folder that a path or an ``e3va://`` address means; the latter is downloaded.

    Raises:
        UserError: the zoo has none such, or it cannot be downloaded.
    """
    path = str(path)
    return local_path(path) if path.startswith(SCHEME) else Path(path).expanduser()


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    trunk: str | None = None,
    any_trunk: bool = False,
) -> tuple[nn.Module, ModelConfig]:
    """A trained model, in evaluation mode.

    An adapter gets the very trunk that it was trained on, rounded as it was then: its model
    computes what the whole model computes, to the bit.

    Args:
        path: ``model.pth`` or ``training.pth`` of ``e3va train``; an adapter's folder or one of its
            files, of either framework; or ``e3va://NAME``, an adapter of the zoo.
        trunk: of an adapter, see :func:`e3va.torchvision.models.read_trunk`; None to look for the
            one that it was trained on, see :func:`e3va.model_zoo.trunks.find_trunk_of`.
        any_trunk: take the trunk though it is another than that one.

    Raises:
        UserError: the file is missing, broken, of another kind, or its tensors do not fit; or the
            trunk is not to be found, or another.
    """
    place = find_saved(path)
    if place.is_dir() or is_adapter(place):
        return _from_adapter(place, torch.device(device), trunk, any_trunk)
    if trunk:
        raise UserError(f"{path} is a whole model with its trunk inside: --trunk is for adapters")
    data = load_file(place)
    if not isinstance(data.get("config"), dict):
        raise UserError(_not_ours(data, str(path)))
    config = ModelConfig.from_dict(data["config"], str(path))
    model = build_model(config)
    load_state(model, model_state(data, str(path)), str(path))
    model.backbone.bottom_up.trunk.origin = recorded_origin(data)
    return model.to(device).eval(), config


def _not_ours(data: Mapping[str, Any], source: str) -> str:
    if FULL_KEY in data:
        return (
            f"{source} is a whole model of another framework: make an adapter of it with e3va convert "
            f"{source} --output FOLDER, and give that"
        )
    return (
        f"{source} is not a model of e3va train: it has no model description; for pretrained Swin "
        "weights use e3va train --trunk"
    )


def _from_adapter(
    path: Path, device: torch.device, given: str | None, any_trunk: bool
) -> tuple[nn.Module, ModelConfig]:
    state, about = read_adapter(path)
    config, state = model_of(about, state, str(path))
    trunk = open_trunk(about, path, given, any_trunk, about.trunk.stored)
    model = build_model(config)
    whole = {about.trunk_prefix + name: value for name, value in trunk.state_dict().items()}
    load_state(model, {**whole, **state}, str(path))
    model.backbone.bottom_up.trunk.origin = trunk.origin
    return model.to(device).eval(), config


def open_trunk(
    about: AdapterConfig, path: Path, given: str | None, any_trunk: bool, stored: str
) -> SwinTrunk:
    """The trunk of an adapter, its weights rounded as ``stored`` says.

    Args:
        path: the adapter's folder or one of its files.
        given, any_trunk: ``trunk`` and ``any_trunk`` of :func:`load_model`.

    Raises:
        UserError: it is not to be found, or another.
    """
    folder = path if path.is_dir() else path.parent
    state, source = find_trunk_of(about, given, folder)
    return build_trunk(
        *(about, state, source), adapter=str(path), any_trunk=any_trunk, stored=stored
    )


def load_adapters(
    paths: Mapping[str, str | Path],
    trunk: str | None = None,
    device: str | torch.device = "cpu",
    any_trunk: bool = False,
) -> AdapterSet:
    """Several adapters over one trunk, which is in memory once.

    Each computes what :func:`load_model` gives for it, to the bit, if all of them were trained on
    the trunk with its weights kept in the same way. Where one was kept in bfloat16 and another in 8
    bits, say, the weights are not rounded at all, and results differ by that much.

    Args:
        paths: adapters by the names to switch by; folders, their files or ``e3va://`` addresses.
        trunk, any_trunk: see :func:`load_model`.

    Raises:
        UserError: see :func:`load_model`; or the adapters are of different trunks.

    Example::

        models = load_adapters({"fruit": "output/fruit", "leaves": "e3va://leaves"})
        models.set_adapter("leaves")([image])
    """
    if not paths:
        raise UserError("no adapter is given: expected some, by name")
    places = {name: find_saved(path) for name, path in paths.items()}
    described = [read_config(place) for place in places.values()]
    kept = {about.trunk.stored for about in described}
    first = next(iter(places.values()))
    stored = kept.pop() if len(kept) == 1 else "fp32"
    shared = open_trunk(described[0], first, trunk, any_trunk, stored).to(device)

    def build(about: AdapterConfig, state: Mapping[str, Tensor], trunk: SwinTrunk) -> nn.Module:
        config, _ = model_of(about, state, "the adapter")
        model = build_model(config, trunk)
        model.backbone.bottom_up.register_forward_pre_hook(_compute_as_its_own)
        return model.to(device)

    models = AdapterSet(shared, build, FRAMEWORK, find_saved)
    for name, place in places.items():
        models.load_adapter(name, place, any_trunk=any_trunk)
    return models


def _compute_as_its_own(backbone: nn.Module, _: Any) -> None:
    """Let a shared trunk compute as the model's own would."""
    backbone.trunk.precision = backbone.trunk_precision
    backbone.trunk.fast = backbone.memory != "plain"
