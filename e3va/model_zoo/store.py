"""Files of the zoo on this machine: found, or downloaded into the cache; checked at every use."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..utils.atomic import atomic_open, rename_atomically
from ..utils.errors import UserError
from ..weights.checkpoint import load_file
from .cache import cache_root, inside, locked, writing
from .download import Expected, Unreachable, download, sha256_of
from .mirror import MIRROR_VARIABLE, Mirror, current
from .progress import mebibytes, say
from .rows import ZooFile

ASSETS = Path(__file__).parent.parent / "assets"
_PIN = re.compile(r"([0-9a-f]{64})  \S+\s*")


def local_files(files: Sequence[ZooFile], force: bool = False) -> list[Path]:
    """Checked files on this machine, all in one folder; what is not here is downloaded.

    Args:
        files: whose public addresses, or whose places on the mirror, are in one folder too.
        force: download them again even if they are in the cache.

    Raises:
        UserError: a file cannot be had, or is not what the table says.
    """
    if files[0].asset:
        return [_in_place(file, ASSETS, file.asset) for file in files]
    mirror = current()
    folder = mirror.folder if mirror else None
    if folder is not None and all((folder / file.path).is_file() for file in files):
        return [_in_place(file, folder, file.path) for file in files]
    return [_cached(file, mirror, force) for file in files]


def where(files: Sequence[ZooFile]) -> str:
    """Where files are on this machine, in a word for people; ``""`` where they are not all here.

    They are only looked at, not checked.
    """
    if files[0].asset:
        return "with e3va"
    mirror = current()
    places = [("cached", cache_root())]
    if mirror and mirror.folder is not None:
        places.insert(0, ("in the mirror", mirror.folder))
    for word, folder in places:
        if all((folder / file.path).is_file() for file in files):
            return word
    return ""


def are_valid(files: Sequence[ZooFile]) -> bool:
    """Whether the cache has files that are what the table says, or they come with the library."""
    paths = [(file, cache_root() / file.path) for file in files if not file.asset]
    return all(path.is_file() and not expected(file).problem(path) for file, path in paths)


def expected(file: ZooFile) -> Expected:
    """What is known of a file: from the table, else from its first download."""
    return Expected(file.size, file.sha256 or read_pin(file), file.sha256_prefix)


def pin_path(file: ZooFile) -> Path:
    """The file in the cache that keeps the sha256 seen at the first download."""
    return cache_root() / f"{file.path}.sha256"


def read_pin(file: ZooFile) -> str | None:
    """The sha256 seen when a file was first checked; None before that."""
    try:
        match = _PIN.fullmatch(pin_path(file).read_text())
    except (OSError, UnicodeDecodeError):
        return None
    return match and match[1]


def _in_place(file: ZooFile, root: Path, name: str) -> Path:
    path = inside(root / name, root)
    if not path.is_file():
        raise UserError(f"no file {path}, which comes with e3va: install e3va again")
    problem = expected(file).problem(path)
    if problem:
        raise UserError(
            f"{path} has {problem}: it is not the file that the table means; "
            + ("install e3va again" if file.asset else f"copy it again{_pinned(file)}")
        )
    _admit(path, file)
    return path


def _cached(file: ZooFile, mirror: Mirror | None, force: bool) -> Path:
    root = cache_root()
    path = inside(root / file.path, root)
    if not force and path.is_file() and not expected(file).problem(path):
        _admit(path, file)
        return path
    with locked(path):
        # Another process may have downloaded it while this one waited.
        problem = expected(file).problem(path) if path.is_file() else "not been there"
        if problem or force:
            if path.is_file():
                if problem:
                    say(f"{path} has {problem}: altered or truncated, so it is downloaded again")
                with writing(path):
                    path.unlink()
            _download(file, mirror, path)
        try:
            _admit(path, file)
        except UserError:
            path.unlink(missing_ok=True)
            raise
    return path


def _download(file: ZooFile, mirror: Mirror | None, path: Path) -> None:
    url = mirror.url(file.path) if mirror and mirror.folder is None else file.url
    part = path.with_name(path.name + ".part")
    wanted = expected(file)
    try:
        if mirror and mirror.folder is not None:
            url = str(mirror.folder)
            raise Unreachable(f"no {file.path} in that folder")
        if not url:
            raise Unreachable(f"its row has no public address, and {MIRROR_VARIABLE} is not set")
        download(url, part, wanted)
    except Unreachable as reason:
        raise UserError(
            f"{path.name} is not on this machine and could not be downloaded"
            + (f" from {url}" if url else "")
            + f" ({reason}): put it at {path} by hand, or set {MIRROR_VARIABLE} to a folder or web "
            f"address that has {file.path}"
        ) from None
    except UserError as error:
        raise UserError(f"{error}{_pinned(file)}") from None
    size = part.stat().st_size
    with writing(path), rename_atomically(path) as temporary:
        os.replace(part, temporary)
    checked = ", sha256 as expected" if wanted.sha256 else ""
    say(f"{path.name}: {mebibytes(size)}{checked}, kept in {path.parent}")


def _pinned(file: ZooFile) -> str:
    """What to add where the expected sha256 is that of the first download alone."""
    if file.sha256 or not read_pin(file):
        return ""
    return (
        "; the sha256 expected is that of its first download: delete "
        f"{pin_path(file)} if the file was meant to change"
    )


def _is_admitted(path: Path, file: ZooFile) -> bool:
    pin = read_pin(file)
    if file.sha256:
        return path.suffix != ".pth" or pin == file.sha256
    return pin is not None  # with which the file has been compared


def _admit(path: Path, file: ZooFile) -> None:
    """At a checked file's first use: see that no code is needed to read it, and note its sha256.

    Other programs, to which the path may be given, unpickle without asking.
    """
    pin = pin_path(file)
    if _is_admitted(path, file):
        return
    with locked(pin):
        if _is_admitted(path, file):
            return
        if path.suffix == ".pth":
            load_file(path)
        digest = file.sha256 or sha256_of(path)
        if not file.sha256:
            _say_unverified(path, file, digest)
        with writing(pin), atomic_open(pin, "w") as opened:
            opened.write(f"{digest}  {path.name}\n")


def _say_unverified(path: Path, file: ZooFile, digest: str) -> None:
    known = "no sha256 of it is known"
    if file.sha256_prefix:
        known = f"only the first digits of its sha256 are known, {file.sha256_prefix}"
    say(
        f"{path.name} could not be verified: {known}. The one it has now, {digest}, it has to have "
        "from now on"
    )


def with_pin(file: ZooFile) -> ZooFile:
    """The same file with the sha256 that it has to have, where one is known by now."""
    return replace(file, sha256=file.sha256 or read_pin(file))
