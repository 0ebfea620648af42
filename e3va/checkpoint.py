"""Files of weights: read without executing code, written so that a crash leaves the old file."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError


@contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "wb"):
    """Open a temporary file beside ``path`` for writing and rename it to ``path`` at the end.

    If the block raises, or the process is killed, ``path`` is what it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some systems cannot open a folder; the rename has been done all the same
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
    """Read a ``torch.save`` file onto the CPU without executing code from it.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or needs pickled code to load.
    """
    if not os.path.isfile(path):
        raise UserError(f"no weights file {path}: expected a .pth file; check the path")
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


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__


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
