"""Adapter files: every tensor of a model except its trunk's, and a description.

The header of ``adapter_model.safetensors`` contains the description of ``adapter_config.json``,
which shows that the two files belong together.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbone import find_backbone, trunk_prefix
from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from ..utils.optional import require
from ..weights.checkpoint import check_same_tensors, load_safetensors
from ..weights.origin import TrunkOrigin, fingerprint
from .description import AdapterConfig, describe_model
from .heads import to_framework
from .trunk import build_trunk

MODEL_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
FULL_KEY = "e3va"  # key of the description in a checkpoint of the whole model
_HEADER = "e3va_adapter"  # key of the description in the header of the tensors' file


def without_trunk(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter file: all of a model without those with ``prefix``."""
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def save_adapter(model: nn.Module, folder: str | os.PathLike, /, **about: Any) -> AdapterConfig:
    """Write a model's adapter files into a folder.

    Args:
        model: model with one E³VA backbone and a frozen trunk.
        folder: path of the folder, which is created.
        about: ``framework``, ``model``, ``classes``, ``trained_on``, ``steps`` and ``scores`` of
            :class:`e3va.adapter_files.description.AdapterConfig`.

    Raises:
        UserError: the trunk trains too, or the adapters come from outside the registry.
    """
    config = describe_model(model, **about)
    write_adapter(without_trunk(model.state_dict(), config.trunk_prefix), config, folder)
    return config


def write_adapter(
    state: Mapping[str, Tensor], config: AdapterConfig, folder: str | os.PathLike
) -> None:
    """Write the two files of an adapter; each appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch_file = require("safetensors.torch", "writing adapter files")
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    text = json.dumps({**config.to_dict(), "weights": fingerprint(state)}, indent=2)
    # The tensors come first, because a description without them would be wrong.
    with atomic_open(folder / MODEL_FILE) as file:
        file.write(torch_file.save(state, metadata={_HEADER: text}))
    with atomic_open(folder / CONFIG_FILE, "w") as file:
        file.write(text + "\n")


def is_adapter(path: str | os.PathLike) -> bool:
    """Return whether ``path`` is an adapter's folder or one of its two files."""
    path = Path(path)
    if path.is_dir():
        return (path / MODEL_FILE).is_file() or (path / CONFIG_FILE).is_file()
    return path.name in (MODEL_FILE, CONFIG_FILE)


def read_config(path: str | os.PathLike) -> AdapterConfig:
    """Read an adapter's ``adapter_config.json``; the tensors may be absent."""
    path = _folder(path, CONFIG_FILE) / CONFIG_FILE
    return AdapterConfig.from_dict(_read_json(path), str(path))


def read_adapter(path: str | os.PathLike) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Read and check an adapter's folder, or the folder of one of its files; execute no code.

    Returns:
        the tensors under the model's names, and their description.

    Raises:
        UserError: a file is missing, truncated or altered; the two files do not belong together;
            or the format version is unknown.
    """
    folder = _folder(path, MODEL_FILE, CONFIG_FILE)
    source = str(folder / MODEL_FILE)
    state, metadata = load_safetensors(folder / MODEL_FILE)
    if _HEADER not in metadata:
        raise UserError(
            f"{source} has no description of an adapter: expected a file that e3va wrote; give "
            "other weights with --trunk or train.init_checkpoint"
        )
    described = _parse(metadata[_HEADER], source)
    config = AdapterConfig.from_dict(described, source)
    readable = _read_json(folder / CONFIG_FILE)
    if readable != described:
        changed = sorted(k for k in {*readable, *described} if readable.get(k) != described.get(k))
        raise UserError(
            f"{folder / CONFIG_FILE} differs from the header of {MODEL_FILE} in "
            f"{', '.join(changed)}: the two files are from different trainings, or one was "
            "altered; copy both again"
        )
    if described.get("weights") != fingerprint(state):
        raise UserError(f"{source} was altered after it was written: copy or download it again")
    return state, config


def _folder(path: str | os.PathLike, *needed: str) -> Path:
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name not in (MODEL_FILE, CONFIG_FILE):
        raise UserError(f"{path} is no adapter: expected a folder with {MODEL_FILE}")
    for name in needed:
        if not (folder / name).is_file():
            both = f"{MODEL_FILE} and {CONFIG_FILE}"
            raise UserError(f"no {name} in {folder}: expected an adapter's folder, with {both}")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(
            f"{source}: its description is not a JSON object: it is truncated or was altered; copy "
            "or download it again"
        )
    return data


def load_adapter(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    backbone_only: bool = False,
    any_trunk: bool = False,
    framework: str = "",
) -> AdapterConfig:
    """Load an adapter into a model that has its trunk's weights already.

    Args:
        model: model with an E³VA backbone.
        path: folder of the adapter, or one of its files.
        backbone_only: whether to load only the highway, which fits the models of any framework and
            task; neck and heads then keep their weights, and so does the norm of a pyramid level
            that the adapter lacks.
        any_trunk: whether to accept a trunk with another fingerprint than the adapter's.
        framework: framework of the model; heads of the other framework are translated, see
            :mod:`e3va.adapter_files.heads`.

    Returns:
        the adapter's description.

    Raises:
        UserError: the adapter cannot be read (see :func:`read_adapter`), or is for another
            backbone, another trunk or other heads. The model then keeps its weights.
    """
    state, config = read_adapter(path)
    apply_adapter(
        *(model, state, config, str(path)),
        backbone_only=backbone_only,
        any_trunk=any_trunk,
        framework=framework,
    )
    return config


def apply_adapter(
    model: nn.Module,
    state: Mapping[str, Tensor],
    config: AdapterConfig,
    source: str,
    *,
    backbone_only: bool = False,
    any_trunk: bool = False,
    framework: str = "",
) -> None:
    """Load the result of :func:`read_adapter` into a model; see :func:`load_adapter`."""
    _, backbone = find_backbone(model)
    config.check_backbone(backbone, source, backbone_only)
    if not any_trunk:
        config.check_origin(backbone.trunk, source)
    prefix = trunk_prefix(model)
    own = without_trunk(model.state_dict(), prefix)
    if backbone_only:
        ours, theirs = _highway_prefix(prefix), _highway_prefix(config.trunk_prefix)
        part, _ = backbone_part(state, config)
        state = {ours + name[len(theirs) :]: value for name, value in part.items()}
        own = {name: value for name, value in own.items() if name.startswith(ours)}
        if config.backbone.out_features != backbone.out_features:
            norms = {name for name in own.keys() ^ state.keys() if ".out_norm." in name}
            own, state = ({k: v for k, v in part.items() if k not in norms} for part in (own, state))
    elif framework and config.framework and framework != config.framework:
        state, left = to_framework(state, framework)
        if left:
            raise UserError(
                f"{source} is from a model of {config.framework}, and {len(left)} of its tensors "
                f"({left[0]} first) have no counterpart in {framework}: load only its backbone part"
            )
    advice = "build the adapter's model, or load only the backbone part of the adapter"
    check_same_tensors(own, state, source, advice)
    model.load_state_dict(state, strict=False)


def backbone_part(
    state: Mapping[str, Tensor], config: AdapterConfig
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Return the highway of an adapter, and a description without model and classes."""
    prefix = _highway_prefix(config.trunk_prefix)
    part = {name: value for name, value in state.items() if name.startswith(prefix)}
    return part, replace(config, framework="", model={}, classes=())


def _highway_prefix(trunk: str) -> str:
    return trunk.removesuffix("trunk.") + "highway."


def merge(
    adapter: Mapping[str, Tensor],
    config: AdapterConfig,
    trunk: Mapping[str, Tensor],
    source: str,
    *,
    any_trunk: bool = False,
) -> dict[str, Tensor]:
    """Return a whole model's state dict; it equals the trained model to the bit.

    See :func:`e3va.adapter_files.trunk.build_trunk` for the arguments and errors.
    """
    module = build_trunk(config, trunk, source, any_trunk=any_trunk)
    whole = {config.trunk_prefix + name: value for name, value in module.state_dict().items()}
    return {**whole, **adapter}


def split(
    checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Return tensors and description of the adapter in a checkpoint of a whole model.

    If another trainer wrote the checkpoint, it has no description. The settings are then
    found from the model's state dict ``state``.
    """
    config = _recorded(checkpoint, source) or AdapterConfig.from_state(state, source)
    return without_trunk(state, config.trunk_prefix), config


def recorded_origin(checkpoint: Mapping[str, Any]) -> TrunkOrigin | None:
    """Return the origin of the trunk in a whole model's checkpoint; None if it is not recorded."""
    config = _recorded(checkpoint, "the checkpoint")
    return config.trunk if config else None


def _recorded(checkpoint: Mapping[str, Any], source: str) -> AdapterConfig | None:
    described = checkpoint.get(FULL_KEY)
    found = isinstance(described, Mapping)
    return AdapterConfig.from_dict(dict(described), source) if found else None
