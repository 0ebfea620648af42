"""Pretrained weights of a trunk: by file, address or name, or those of an adapter's training."""

from pathlib import Path

from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import DEMO, DEMO_FILE
from .catalogue import find_trunk_name
from .hub import fetch
from .resolve import local_path, pinned
from .rows import HUB, SCHEME, SCHEMES


def as_address(name: str) -> str | None:
    """Return the address of a trunk for its name, its file's name or address; None for other files.

    An address on the hub gets its commit.
    """
    if name.startswith(SCHEMES):
        return pinned(name)
    path = Path(name).expanduser()
    if path.exists() or path.name != name:
        return None
    known = find_trunk_name(name)
    if known:
        return SCHEME + known
    return None if path.suffix else SCHEME + name  # the zoo's error lists the nearest names


def read_trunk_file(name: str) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in a file of pretrained weights, and its path or address on the hub.

    ``name`` is ``"demo"``, an address, the path of a file, or the name of a trunk.
    """
    name = str(DEMO_FILE) if name == DEMO else name
    if name.startswith(HUB):
        path, source = fetch(name)
    else:
        address = as_address(name)
        path = local_path(address) if address else Path(name).expanduser()
        source = str(path)
    return model_state(load_file(path), source), source


def find_trunk_of(
    config: AdapterConfig, given: str | None = None, near: Path | None = None
) -> tuple[dict[str, Tensor], str]:
    """Return the weights of the trunk that an adapter was trained on, without checking them.

    Args:
        config: description of the adapter.
        given: trunk that the user named, see :func:`read_trunk_file`; None to search for it.
        near: folder of the adapter; it, the folder above it and the current one are searched.

    Returns:
        the state dict, and the file's path.
    """
    source = given or config.trunk.source
    if given or source == DEMO or source.startswith(SCHEMES):
        return read_trunk_file(source)
    name = Path(source).name
    folders = [*([near, near.resolve().parent] if near is not None else []), Path.cwd()]
    for folder in folders:
        if (folder / name).is_file():
            return read_trunk_file(str(folder / name))
    known = find_trunk_name(name)
    if known:
        return read_trunk_file(SCHEME + known)
    searched = ", ".join(dict.fromkeys(map(str, folders)))
    raise UserError(
        f"the adapter's trunk {source} (fingerprint {config.trunk.short}) was not found: no such "
        f"file in {searched}, and no trunk of that name in the zoo; give it with --trunk FILE "
        "(with Detectron2: train.trunk=FILE)"
    )
