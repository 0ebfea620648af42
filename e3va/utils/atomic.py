"""Write files so that a crash or a full disk leaves the old file in place."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .measure import MIB

# Of a disk or a folder. Other errors, such as those of a connection, are none of a file's.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_FOLDER = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


class WriteError(UserError):
    """A file cannot be written.

    Attributes:
        path: the file.
        reason: the reason, on one line.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        self.path, self.reason = Path(path), reason
        super().__init__(
            f"{path} cannot be written ({reason}): make room or get write permission, or choose "
            "another folder; the files that were there before are whole"
        )


@contextmanager
def writing(path: str | os.PathLike, needed: int = 0) -> Iterator[None]:
    """Turn the operating system's error about a file or its folder into a :class:`WriteError`.

    ``needed`` is the number of bytes that the file will have, 0 if it is not known.
    """
    try:
        yield
    except OSError as error:
        if not (error.errno in _DISK or (error.errno in _FOLDER and _is_in(error, path))):
            raise
        raise WriteError(path, _reason(error, path, needed)) from None


def _is_in(error: OSError, path: str | os.PathLike) -> bool:
    """Return whether an error is about a file in the folder of ``path``, or about no file."""
    if error.filename is None:
        return True
    return Path(os.fsdecode(error.filename)).parent == Path(path).parent


def _reason(error: OSError, path: str | os.PathLike, needed: int) -> str:
    parts = [error.strerror or str(error)]
    if needed:
        parts.append(f"{needed / MIB:.1f} MiB are needed")
    with suppress(OSError):
        parts.append(f"{shutil.disk_usage(Path(path).parent).free / MIB:.1f} MiB are free")
    return ", ".join(parts)


@contextmanager
def rename_atomically(path: str | os.PathLike, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary file name beside ``path``, and rename that file to ``path`` at the end.

    If the block raises, or the process is killed, ``path`` does not change.

    Raises:
        WriteError: the disk is full, or the folder cannot be written; see :func:`writing`.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is no ordinary file, such as a device: give another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, needed):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    with suppress(OSError):  # some systems cannot open a folder
        _sync(path.parent)


@contextmanager
def atomic_open(path: str | os.PathLike, mode: str = "wb", needed: int = 0):
    """Open a file for writing that becomes ``path`` at the end, see :func:`rename_atomically`.

    Text is UTF-8.
    """
    encoding = None if "b" in mode else "utf-8"
    with (
        rename_atomically(path, needed) as temporary,
        open(temporary, mode, encoding=encoding) as file,
    ):
        yield file


def save_atomically(data: Any, path: str | os.PathLike) -> None:
    """Save to ``path`` with ``torch.save``, atomically."""
    with atomic_open(path, needed=_tensor_bytes(data)) as file:
        recorder = _Recorder(file)
        try:
            torch.save(data, recorder)
        except RuntimeError:  # torch hides why the file could not be written
            if recorder.error is None:
                raise
            raise recorder.error from None


class _Recorder:
    """A file that keeps the error of a write."""

    def __init__(self, file):
        self.file, self.flush, self.error = file, file.flush, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def _tensor_bytes(data: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists, each storage once."""
    sizes: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, list | tuple):
            for item in value:
                visit(item)

    visit(data)
    return sum(sizes.values())


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
