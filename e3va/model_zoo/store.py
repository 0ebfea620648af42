"""Files of the zoo on this machine: found, downloaded or merged, and checked at every use."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from .._version import __version__
from ..adapter_files.files import FULL_KEY, merge, read_adapter
from ..utils.atomic import save_atomically
from ..utils.errors import UserError
from ..weights.checkpoint import has_8_bit_matrices, load_file, model_state
from .catalogue import MIRROR_VARIABLE, find_row, mirror
from .download import Unreachable, cache_root, download, locked, say, sha256_of, writing
from .rows import ADAPTERS, SIZE_CAP, AdapterRow, TrunkRow, ZooFile, is_web_address

ASSETS = Path(__file__).parent.parent / "assets"
FULL_FILE = "model_final.pth"


def local_files(files: Sequence[ZooFile], force: bool = False) -> list[Path]:
    """Return checked files in one folder on this machine; download those that are missing."""
    folder = mirror()
    if files[0].asset:
        return [_checked(file, ASSETS / file.asset, "install e3va again") for file in files]
    if isinstance(folder, Path) and all((folder / file.path).is_file() for file in files):
        return [_checked(file, folder / file.path, "copy it again") for file in files]
    return [_cached(file, force) for file in files]


def where(files: Sequence[ZooFile]) -> str:
    """Return where unchecked files are, in words for people; ``""`` if one is missing."""
    if files[0].asset:
        return "with e3va"
    for word, root in (("in the mirror", mirror()), ("cached", cache_root())):
        if isinstance(root, Path) and all((root / file.path).is_file() for file in files):
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
        download(url, path, file.size or SIZE_CAP, file.problem)
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


def full_checkpoint(row: AdapterRow, force: bool = False) -> Path:
    """Return a checkpoint of the whole model for Detectron2, merged from an adapter and its trunk.

    The file in the cache, ``{"model": state dict, "e3va": config}``, is written again when the
    adapter, the trunk, this library's version or the file itself has changed.
    """
    trunk = find_row(row.trunk)
    if not isinstance(trunk, TrunkRow):
        raise UserError(f"the adapter {row.name!r} names {row.trunk!r}, which is not a trunk")
    files = local_files(row.files, force) + local_files(trunk.files, force)
    adapter, config = read_adapter(files[0].parent)
    # Anchors and pooling of torchvision's models are not those of any Detectron2 config.
    if config.framework not in ("detectron2", ""):
        raise UserError(
            f"the adapter {row.name!r} is one of {config.framework}, so it has no {FULL_FILE}: use "
            f"e3va predict e3va://{row.name}, or give its folder to LazyPredictor with a config"
        )
    path = cache_root() / ADAPTERS / row.name / FULL_FILE

    def merged() -> dict:
        state = model_state(load_file(files[-1]), str(files[-1]))
        whole = merge(adapter, config, state, str(files[-1]))
        return {"model": whole, FULL_KEY: config.to_dict()}

    _keep_current(path, files, merged, f"{row.name}: adapter and trunk {trunk.name} merged into")
    return path


def plain_copy(path: Path) -> Path:
    """Return a file of weights that other programs can read: the file itself, or a copy in float32.

    The copy, in the cache, is of a trunk's file with 8-bit matrices. It is written again when the
    file, this library's version or the copy itself has changed.
    """
    if not has_8_bit_matrices(path):
        return path
    copy = cache_root() / "float32" / f"{path.stem}.pth"
    _keep_current(copy, [path], lambda: {"model": load_file(path)}, f"{path.name} in float32:")
    return copy


def _keep_current(path: Path, sources: list[Path], make: Callable[[], dict], what: str) -> None:
    """Write what ``make`` returns, unless the file was written from the same sources before."""
    record = path.with_suffix(".json")
    parts = [__version__, *map(sha256_of, sources)]
    with locked(path):
        if not _is_current(path, record, parts):
            data = make()
            with writing(path):
                save_atomically(data, path)
                record.write_text(json.dumps([*parts, sha256_of(path)]))
            say(f"{what} {path}")


def _is_current(path: Path, record: Path, parts: list[str]) -> bool:
    try:
        return json.loads(record.read_text()) == [*parts, sha256_of(path)]
    except (OSError, ValueError):
        return False  # there is none yet, or the record is broken
