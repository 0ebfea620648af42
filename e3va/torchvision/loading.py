"""Trained models from their files: whole models, and adapters with their trunk."""

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
from ..model_zoo.rows import SCHEMES
from ..model_zoo.trunks import find_trunk_of
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.origin import TrunkOrigin
from .description import FRAMEWORK, fit_model
from .models import ModelConfig, build_model, load_state


def find_saved(path: str | Path) -> Path:
    """Return the file or folder of a path or an address, which is downloaded."""
    path = str(path)
    return local_path(path) if path.startswith(SCHEMES) else Path(path).expanduser()


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    trunk: str | None = None,
    any_trunk: bool = False,
) -> tuple[nn.Module, ModelConfig]:
    """Load a trained model, in evaluation mode.

    The trunk of an adapter is rounded as in its training, so that the model computes what the
    whole model computes, to the bit.

    Args:
        path: ``model.pth`` or ``training.pth`` of ``e3va train``; an adapter's folder or one of its
            files, of either framework; ``e3va://NAME``, an adapter of the zoo; or
            ``hf://USER/NAME``, one on the Hugging Face Hub.
        device: the model's device.
        trunk: trunk of an adapter, see :func:`e3va.torchvision.models.read_trunk`; None to search
            for the trunk of its training, see :func:`e3va.model_zoo.trunks.find_trunk_of`.
        any_trunk: whether to accept another trunk than that of the adapter's training.

    Raises:
        UserError: the file is missing, broken or of another kind; its tensors do not fit; or the
            trunk is not found or differs from that of the training.
    """
    place = find_saved(path)
    if place.is_dir() or is_adapter(place):
        state, about = read_adapter(place)
        config, state = fit_model(about, state, str(place))
        state, origin = whole_state(state, about, place, trunk, any_trunk)
    elif trunk:
        raise UserError(f"{path} is a whole model with its trunk inside: --trunk is for adapters")
    else:
        data = load_file(place)
        if not isinstance(data.get("config"), dict):
            raise _not_of_train(data, str(path))
        config = ModelConfig.from_dict(data["config"], str(path))
        state, origin = model_state(data, str(path)), recorded_origin(data)
    model = build_model(config)
    load_state(model, state, str(path))
    model.backbone.bottom_up.trunk.origin = origin
    return model.to(device).eval(), config


def _not_of_train(data: Mapping[str, Any], source: str) -> UserError:
    if FULL_KEY in data:
        return UserError(
            f"{source} is a whole model of another framework: make an adapter of it with e3va "
            f"convert {source} --output FOLDER, and give that folder"
        )
    return UserError(
        f"{source} is not a model of e3va train: it has no model description; for pretrained Swin "
        "weights use e3va train --trunk"
    )


def open_trunk(
    about: AdapterConfig,
    path: Path,
    given: str | None = None,
    any_trunk: bool = False,
    stored: str | None = None,
) -> SwinTrunk:
    """Find and build the trunk of the adapter in ``path``, see :func:`load_model`."""
    state, source = find_trunk_of(about, given, path if path.is_dir() else path.parent)
    options = {"adapter": str(path), "any_trunk": any_trunk, "stored": stored}
    return build_trunk(about, state, source, **options)


def whole_state(
    adapter: Mapping[str, Tensor],
    about: AdapterConfig,
    path: Path,
    trunk: str | None,
    any_trunk: bool,
) -> tuple[dict[str, Tensor], TrunkOrigin]:
    """Return a whole model's state dict from an adapter, and the origin of the trunk in it."""
    module = open_trunk(about, path, trunk, any_trunk)
    whole = {about.trunk_prefix + name: value for name, value in module.state_dict().items()}
    return {**whole, **adapter}, module.origin


def load_adapters(
    paths: Mapping[str, str | Path],
    trunk: str | None = None,
    device: str | torch.device = "cpu",
    any_trunk: bool = False,
) -> AdapterSet:
    """Load several adapters over one trunk, which is in memory once.

    If all trainings stored the trunk's weights in the same form, each model computes what
    :func:`load_model` computes, to the bit. If one stored them in bfloat16 and another in 8 bits,
    for example, the weights are not rounded here, and results differ by the rounding.

    Args:
        paths: folders, files or addresses of adapters, by the names to select them.
        trunk: the trunk, see :func:`load_model`.
        device: the models' device.
        any_trunk: whether to accept another trunk than that of the adapters' trainings.

    Raises:
        UserError: an adapter or the trunk cannot be loaded, see :func:`load_model`; or the adapters
            were trained on different trunks.

    Example::

        models = load_adapters({"fruit": "output/fruit", "leaves": "e3va://leaves"})
        models.set_adapter("leaves")([image])
        models.predict_all([image])  # {"fruit": …, "leaves": …} from one pass of the trunk

    The attribute ``config`` of each model is its :class:`~e3va.torchvision.models.ModelConfig`.
    """
    if not paths:
        raise UserError("no adapter is given: expected at least one, by its name")
    places = {name: find_saved(path) for name, path in paths.items()}
    configs = [read_config(place) for place in places.values()]
    forms = {about.trunk.stored for about in configs}
    first = next(iter(places.values()))
    stored = forms.pop() if len(forms) == 1 else "fp32"
    shared = open_trunk(configs[0], first, trunk, any_trunk, stored).to(device)

    def build(about: AdapterConfig, state: Mapping[str, Tensor], trunk: SwinTrunk) -> nn.Module:
        config, _ = fit_model(about, state, "the adapter")
        model = build_model(config, trunk)
        model.config = config
        model.backbone.bottom_up.register_forward_pre_hook(_set_trunk_mode)
        return model.to(device)

    models = AdapterSet(shared, build, FRAMEWORK, find_saved)
    for name, place in places.items():
        models.load_adapter(name, place, any_trunk=any_trunk)
    return models


def _set_trunk_mode(backbone: nn.Module, _: Any) -> None:
    """Set a shared trunk to the precision and form of the model that runs."""
    backbone.trunk.precision = backbone.trunk_precision
    backbone.trunk.fast = backbone.memory != "plain"
