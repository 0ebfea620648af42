"""Adapter files: all that was trained, without the trunk that it was trained on.

A folder holds ``adapter_model.safetensors`` (every tensor of the model but the trunk's, under the
model's own names) and ``adapter_config.json``, which people read too. The tensors' file carries the
same description, so the two can be told to belong together, as Hugging Face peft's do by name
alone.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbone import find_backbone, trunk_prefix
from ..utils.atomic import atomic_open, rename_atomically
from ..utils.errors import UserError
from ..utils.optional import require
from ..weights.checkpoint import load_safetensors
from ..weights.origin import TrunkOrigin, fingerprint
from .description import AdapterConfig, describe_model
from .heads import to_framework
from .trunk import build_trunk

MODEL_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
FULL_KEY = "e3va"  # of the adapter's description inside a checkpoint of the whole model
_HEADER = "e3va_adapter"  # its description in the tensors' file
_HIGHWAY = "highway."


def without_trunk(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a model's state that an adapter file holds."""
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def save_adapter(model: nn.Module, folder: str | os.PathLike, /, **about: Any) -> AdapterConfig:
    """Write a model's adapter files into ``folder``.

    Args:
        model: any that has one E³VA backbone, whose trunk is frozen.
        about: ``framework``, ``model``, ``classes``, ``trained_on``, ``steps`` and ``scores`` of
            :class:`e3va.adapter_files.description.AdapterConfig`.

    Raises:
        UserError: the trunk trains with the rest, so that an adapter alone is worth nothing.
    """
    config = describe_model(model, **about)
    write_adapter(without_trunk(model.state_dict(), config.trunk_prefix), config, folder)
    return config


def write_adapter(
    state: Mapping[str, Tensor], config: AdapterConfig, folder: str | os.PathLike
) -> None:
    """Write tensors and their description; each of the two files appears whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch_file = require("safetensors.torch", "writing adapter files")
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    text = json.dumps({**config.to_dict(), "weights": fingerprint(state)}, indent=2)
    # The tensors first: a description without them would promise what is not there.
    with rename_atomically(folder / MODEL_FILE) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's own; safetensors would lock others out
        torch_file.save_file(state, temporary, metadata={_HEADER: text})
        temporary.chmod(mode)
    with atomic_open(folder / CONFIG_FILE, "w") as file:
        file.write(text + "\n")


def is_adapter(path: str | os.PathLike) -> bool:
    """Whether ``path`` is an adapter's folder or one of its two files."""
    path = Path(path)
    if path.is_dir():
        return (path / MODEL_FILE).is_file() or (path / CONFIG_FILE).is_file()
    return path.name in (MODEL_FILE, CONFIG_FILE)


def read_config(path: str | os.PathLike) -> AdapterConfig:
    """The description of an adapter, from its readable file alone.

    Raises:
        UserError: see :func:`read_adapter`.
    """
    path = _folder(path) / CONFIG_FILE
    return AdapterConfig.from_dict(_read_json(path), str(path))


def read_adapter(path: str | os.PathLike) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Read and check an adapter; no code is executed.

    Args:
        path: its folder, or one of its two files.

    Returns:
        the tensors under the model's names, and their description.

    Raises:
        UserError: a file is missing, truncated, or altered after it was written; the two do not
            belong together; or a version of the format that is not known here.
    """
    folder = _folder(path)
    state, metadata = load_safetensors(folder / MODEL_FILE)
    source = str(folder / MODEL_FILE)
    if _HEADER not in metadata:
        raise UserError(
            f"{source} has no description of an adapter: expected a file that e3va wrote; other "
            "weights are read by --trunk or train.init_checkpoint"
        )
    described = _parse(metadata[_HEADER], source)
    config = AdapterConfig.from_dict(described, source)
    readable = _read_json(folder / CONFIG_FILE)
    if readable != described:
        changed = sorted(k for k in {*readable, *described} if readable.get(k) != described.get(k))
        raise UserError(
            f"{folder / CONFIG_FILE} is not the description that {MODEL_FILE} was written with "
            f"({', '.join(changed)} differ): the two files are of different trainings, or one was "
            "altered; copy both again"
        )
    if described.get("weights") != fingerprint(state):
        raise UserError(f"{source} was altered after it was written: copy or download it again")
    return state, config


def _folder(path: str | os.PathLike) -> Path:
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name not in (MODEL_FILE, CONFIG_FILE):
        raise UserError(f"{path} is no adapter: expected a folder with {MODEL_FILE}")
    for name in (MODEL_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"no {name} in {folder}: expected an adapter's folder, with {MODEL_FILE} and "
                f"{CONFIG_FILE}"
            )
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
    """Load an adapter into a model whose trunk is loaded already.

    Args:
        path: the adapter's folder, or one of its files.
        backbone_only: leave neck and heads as they are; the backbone's part fits the models of
            any framework and task.
        any_trunk: load it though the trunk's weights are not those it was trained on.
        framework: of the model; heads of the other framework's models are renamed where they are the same,
            see :mod:`e3va.adapter_files.heads`.

    Returns:
        the adapter's description.

    Raises:
        UserError: see :func:`read_adapter`; a backbone with other settings, a trunk with another
            fingerprint, or heads of another model. The model is then as it was.
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
    """Load what :func:`read_adapter` gave into a model; see :func:`load_adapter`."""
    _, backbone = find_backbone(model)
    config.check_backbone(backbone, source)
    if not any_trunk:
        config.check_origin(backbone.trunk, source)
    prefix = trunk_prefix(model)
    ours, theirs = _highway_prefix(prefix), _highway_prefix(config.trunk_prefix)
    if backbone_only:
        part, _ = backbone_part(state, config)
        state = {ours + name[len(theirs) :]: value for name, value in part.items()}
    elif framework and config.framework and framework != config.framework:
        state, left = to_framework(state, framework)
        if left:
            raise UserError(
                f"{source} is of a model of {config.framework}, of which {len(left)} tensors "
                f"({left[0]}, …) have no counterpart along {framework}: load its backbone part alone"
            )
    own = without_trunk(model.state_dict(), prefix)
    if backbone_only:
        own = {key: value for key, value in own.items() if key.startswith(ours)}
    _check_same(state, own, source)
    model.load_state_dict(state, strict=False)


def backbone_part(
    state: Mapping[str, Tensor], config: AdapterConfig
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Of an adapter, what belongs to its backbone: the highway, a few megabytes.

    Returns:
        its tensors, and a description that is of no whole model any more.
    """
    prefix = _highway_prefix(config.trunk_prefix)
    part = {name: value for name, value in state.items() if name.startswith(prefix)}
    return part, replace(config, framework="", model={}, classes=())


def _highway_prefix(trunk: str) -> str:
    return f"{trunk.removesuffix('trunk.')}{_HIGHWAY}"


def _check_same(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or extra or wrong:
        first = (*wrong, *missing, *extra)[0]
        here, there = (
            f"{list(tensors[first].shape)}" if first in tensors else "absent"
            for tensors in (own, state)
        )
        raise UserError(
            f"{source} does not fit this model: {len(missing)} tensors missing, {len(extra)} "
            f"unknown, {len(wrong)} of another shape ({first}: {there} in the file, {here} in the "
            "model); build the model that it is of, or load its backbone part alone"
        )


def merge(
    adapter: Mapping[str, Tensor],
    config: AdapterConfig,
    trunk: Mapping[str, Tensor],
    source: str,
    *,
    any_trunk: bool = False,
) -> dict[str, Tensor]:
    """A whole model's state dict from an adapter and its trunk.

    It is to the bit the one that the adapter was taken from: the trunk is rounded as that one was.

    Args:
        adapter, config: of :func:`read_adapter`.
        trunk: a pretrained Swin's state dict in any layout that :mod:`e3va.weights.loading` reads.
        source: names the trunk's file in errors.

    Raises:
        UserError: the trunk has another fingerprint, or is another Swin.
    """
    module = build_trunk(config, trunk, source, any_trunk=any_trunk)
    whole = {config.trunk_prefix + name: value for name, value in module.state_dict().items()}
    return {**whole, **adapter}


def split(
    checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], AdapterConfig]:
    """The adapter inside a checkpoint of a whole model.

    Args:
        checkpoint: what the file holds; what it says of itself is taken over.
        state: the model's state dict in it.

    Returns:
        the tensors without the trunk's, and their description. Of a checkpoint that does not
        describe itself (another trainer wrote it), settings are read off the tensors; what leaves
        no trace there, as ``taps``, are those of the first recipe that fits.

    Raises:
        UserError: there is no E³VA backbone in it.
    """
    described = checkpoint.get(FULL_KEY)
    if isinstance(described, Mapping):
        config = AdapterConfig.from_dict(dict(described), source)
    else:
        config = AdapterConfig.from_state(state, source)
    return without_trunk(state, config.trunk_prefix), config


def recorded_origin(checkpoint: Mapping[str, Any]) -> TrunkOrigin | None:
    """Where the trunk of a whole model's checkpoint came from, if the checkpoint says so."""
    described = checkpoint.get(FULL_KEY)
    if not isinstance(described, Mapping):
        return None
    return AdapterConfig.from_dict(dict(described), "the checkpoint").trunk
