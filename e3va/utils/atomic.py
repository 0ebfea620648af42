"""Write files so that a crash leaves the old file in place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UserError


@contextmanager
def rename_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary file name beside ``path``, and rename that file to ``path`` at the end.

    If the block raises, or the process is killed, ``path`` does not change.
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
    with suppress(OSError):  # some systems cannot open a folder
        _sync(path.parent)


@contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "wb"):
    """Open a file for writing that becomes ``path`` at the end, see :func:`rename_atomically`."""
    with rename_atomically(path) as temporary, open(temporary, mode) as file:
        yield file


def save_atomically(data: Any, path: str | os.PathLike) -> None:
    """Save to ``path`` with ``torch.save``, atomically."""
    with atomic_open(path) as file:
        torch.save(data, file)


def _sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create an output folder, and delete what killed processes left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output folder {folder} cannot be created ({error.strerror}): choose another one"
        ) from None
    remove_leftovers(folder)
    return folder


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete the temporary files of processes that were killed."""
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
        pass
    return True
