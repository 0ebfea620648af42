"""The zoo's folder in iopath's cache: locks, checksums and errors of writing."""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from iopath.common.file_io import file_lock

from ..utils.errors import UserError


def cache_root() -> Path:
    """Return the folder: ``e3va`` in ``FVCORE_CACHE``, by default in ``~/.torch/iopath_cache``."""
    return Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser() / "e3va"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's error into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): free some space, get write "
            "permission, or set FVCORE_CACHE to another folder"
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; only one process or thread at a time can hold it."""
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(str(path)))
        yield


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
