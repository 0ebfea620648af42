"""The lock of an output folder, into which one training at a time writes."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from .atomic import writing
from .errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

FILE = ".lock"
_HELD = {errno.EACCES, errno.EAGAIN}


class FolderLock:
    """The lock of a folder, held from the start until :meth:`release` or the end of the process.

    The system releases it however the process ends, so a killed training is not in the way of its
    successor. A process may lock a folder several times. Where there are no locks (Windows, some
    network file systems), it does nothing.

    Args:
        folder: a folder that exists.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path, self.file = Path(folder) / FILE, None
        while fcntl and not self._take():
            pass

    def _take(self) -> bool:
        """Lock the file; return False if its last owner deleted it in between."""
        with writing(self.path):
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  open while it is held
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            if error.errno not in _HELD:
                return True
            raise UserError(
                f"{self.path.parent} is in use by another training ({owner or 'just started'}): "
                "wait until it ends, or choose another output folder"
            ) from None
        if not self._is_there(file):
            file.close()
            return False
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        self.file = file
        return True

    def _is_there(self, file) -> bool:
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        return False

    def release(self) -> None:
        """Release the lock and delete its file."""
        if self.file is not None:
            with suppress(OSError):  # somebody may have removed the folder
                self.path.unlink()
            self.file.close()
            self.file = None

    def __del__(self):
        self.release()
