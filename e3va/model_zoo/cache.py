"""The zoo's part of iopath's cache: where it is, how it is written, how processes take turns."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iopath.common.file_io import file_lock, get_cache_dir

from ..utils.errors import UserError


def cache_root() -> Path:
    """The folder, which ``FVCORE_CACHE`` moves.

    Raises:
        UserError: iopath fell back to the folder for temporary files, and others can write there.
    """
    folder = Path(get_cache_dir())
    if folder == Path(tempfile.gettempdir(), "iopath_cache"):
        _check_own(folder)
    return folder / "e3va"


def _check_own(folder: Path) -> None:
    """What others can write they could give sha256 notes that fit."""
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    owner = os.getuid() if hasattr(os, "getuid") else facts.st_uid  # Windows has none
    if facts.st_uid != owner or facts.st_mode & 0o022:
        raise UserError(
            f"the cache would be {folder}, where others can write: set FVCORE_CACHE to a folder of "
            "your own"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line why a file cannot be written.

    Raises:
        UserError: the disk is full, a permission is lacking, or the like.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room or give yourself the "
            "permission, or set FVCORE_CACHE to another folder"
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file: one process or thread makes it while the others wait.

    Raises:
        UserError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(str(path)))
        yield


def inside(path: Path, root: Path) -> Path:
    """``path``, checked to lie below ``root`` when all links are followed.

    Raises:
        UserError: it leads out of there.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{path} leads out of {root}, to {path.resolve()}: put the file itself there, not a "
            "link to it"
        )
    return path
