"""Files of the zoo on this machine: found or downloaded, and checked at every use."""

from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import UserError
from ..weights.checkpoint import load_file
from .cache import cache_root, locked, say, sha256_of, writing
from .catalogue import MIRROR_VARIABLE, mirror
from .download import Unreachable, download
from .rows import SIZE_CAP, ZooFile, is_web_address

ASSETS = Path(__file__).parent.parent / "assets"


def local_files(files: Sequence[ZooFile], force: bool = False) -> list[Path]:
    """Return checked files in one folder on this machine; download those that are missing.

    Raises:
        UserError: a file cannot be downloaded, or is not the one that the table describes.
    """
    folder = mirror()
    if files[0].asset:
        return [_checked(file, ASSETS / file.asset, "install e3va again") for file in files]
    if isinstance(folder, Path) and all((folder / file.path).is_file() for file in files):
        return [_checked(file, folder / file.path, "copy it again") for file in files]
    return [_cached(file, force) for file in files]


def where(files: Sequence[ZooFile]) -> str:
    """Return where unchecked files are, as a word for people; ``""`` if one is missing."""
    if files[0].asset:
        return "with e3va"
    folder = mirror()
    places = {"in the mirror": folder} if isinstance(folder, Path) else {}
    for word, root in {**places, "cached": cache_root()}.items():
        if all((root / file.path).is_file() for file in files):
            return word
    return ""


def _checked(file: ZooFile, path: Path, advice: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing: {advice}")
    problem = file.problem(path)
    if problem:
        raise UserError(f"{path} has {problem}: not the file of the zoo's table; {advice}")
    # Other programs, which may get the path, unpickle files without a check.
    if path.suffix == ".pth":
        load_file(path)
    return path


def _cached(file: ZooFile, force: bool) -> Path:
    path = cache_root() / file.path
    if force or not path.is_file() or file.problem(path):
        with locked(path):
            # Another process may have downloaded the file while this one waited.
            problem = file.problem(path) if path.is_file() else ""
            if problem:
                say(f"{path} has {problem}: it was altered or truncated, and is downloaded again")
            if force or problem or not path.is_file():
                with writing(path):
                    path.unlink(missing_ok=True)
                _download(file, path)
    return _checked(file, path, "delete it")


def _download(file: ZooFile, path: Path) -> None:
    place = mirror()
    url = f"{place}/{file.path}" if place else file.url
    try:
        if not is_web_address(url):
            raise Unreachable("no such file" if place else "its row has no public address")
        download(url, path, file.size or SIZE_CAP, file.sha256 if file.is_verifiable else None)
    except Unreachable as reason:
        raise UserError(
            f"{path.name} is not on this machine and could not be downloaded"
            f"{f' from {url}' if url else ''} ({reason}): put it at {path}, or set "
            f"{MIRROR_VARIABLE} to a folder or web address that has {file.path}"
        ) from None
    try:
        _checked(file, path, f"nothing of {url} is kept; use another mirror")
    except UserError:
        path.unlink()
        raise
    if not file.is_verifiable:
        say(
            f"{path.name} could not be verified: the zoo's table has no sha256 of it. The "
            f"downloaded file has sha256 {sha256_of(path)}"
        )
