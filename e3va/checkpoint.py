"""Files of weights: read without executing code, written so that a crash leaves the old file."""

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .optional import require


@contextmanager
def rename_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give the name of a temporary file to write, beside ``path``; it becomes ``path`` at the end.

    If the block raises, or the process is killed, ``path`` is what it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "wb"):
    """Open a temporary file beside ``path`` for writing and rename it to ``path`` at the end.

    If the block raises, or the process is killed, ``path`` is what it was before.
    """
    with rename_atomically(path) as temporary, open(temporary, mode) as file:
        yield file


def _sync(path: Path) -> None:
    """Let what was written to a file, or renamed in a folder, reach the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return  # some systems cannot open a folder; the rename has been done all the same
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete the temporary files that killed processes left in ``folder``."""
    for leftover in Path(folder).glob(".*.tmp"):
        owner = leftover.name.split(".")[-2]
        if not (owner.isdigit() and _is_alive(int(owner))):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def save_atomically(data: Any, path: str | os.PathLike) -> None:
    """``torch.save`` to ``path``, atomically."""
    with atomic_open(path) as file:
        torch.save(data, file)


def load_file(path: str | os.PathLike) -> dict:
    """Read a ``torch.save`` or ``.safetensors`` file onto the CPU without executing code from it.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or needs pickled code to load.
    """
    if not os.path.isfile(path):
        raise UserError(f"no weights file {path}: expected .pth or .safetensors; check the path")
    if str(path).endswith(".safetensors"):
        return load_safetensors(path)[0]
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise UserError(
                f"{path} is not a file of plain tensors (or it is damaged): it could only be read "
                "by running code from it, which is not done; save its state_dict alone"
            ) from None
        raise UserError(f"{path} cannot be read as a checkpoint: {_brief(error)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({_brief(error)}): "
            "it is truncated or another kind of file; copy or download it again"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}: expected a dict of tensors")
    return data


def load_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file.

    Raises:
        UserError: the file is truncated or of another kind, or safetensors is not installed.
    """
    safetensors = require("safetensors", f"reading {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({_brief(error)}): "
            "it is truncated or another kind of file; copy or download it again"
        ) from None


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).split(". ")[0][:120]
    # A KeyError's text is the key alone.
    return text if any(c.isalpha() for c in text) else type(error).__name__


def model_state(data: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under ``model`` or ``state_dict``, or the whole of it.

    Raises:
        UserError: there are no tensors in it.
    """
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            data = data[key]
            break
    state = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{name} holds no tensors: expected the state_dict of a model")
    return {key.removeprefix("module."): value for key, value in state.items()}
