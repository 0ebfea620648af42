"""Write files so that a crash leaves the old file in place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


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
