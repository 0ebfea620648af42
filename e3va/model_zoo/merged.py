"""Whole checkpoints of published adapters, as Detectron2 reads them, made on demand."""

import json
from pathlib import Path

import torch

import e3va

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import FULL_KEY, merge, read_adapter
from ..utils.atomic import atomic_open, save_atomically
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from .cache import cache_root, inside, locked, writing
from .download import Expected, sha256_of
from .progress import say
from .rows import ADAPTERS, AdapterRow, TrunkRow
from .store import local_files, with_pin
from .table import find_row

FULL_FILE = "model_final.pth"


def full_checkpoint(row: AdapterRow, force: bool = False) -> Path:
    """The checkpoint of a whole model, merged from an adapter and its trunk into the cache.

    It is ``{"model": state dict, "e3va": description}`` and is made again when the adapter, the
    trunk or the library has changed since, or the file itself has.

    Raises:
        UserError: the adapter or its trunk cannot be had, or they do not belong together.
    """
    trunk = find_row(row.trunk)
    if not isinstance(trunk, TrunkRow):
        raise UserError(f"the adapter {row.name!r} names the trunk {row.trunk!r}: it is none")
    root = cache_root()
    path = inside(root / ADAPTERS / row.name / FULL_FILE, root)
    if not force and _is_current(path, row, trunk):
        return path
    with locked(path):
        if force or not _is_current(path, row, trunk):
            _make(path, row, trunk, force)
    return path


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _inputs(row: AdapterRow, trunk: TrunkRow) -> dict[str, str | None]:
    files = (*row.files, with_pin(trunk.file))
    return {"e3va": e3va.__version__, "torch": torch.__version__} | {
        file.path: file.sha256 for file in files
    }


def _is_current(path: Path, row: AdapterRow, trunk: TrunkRow) -> bool:
    try:
        record = json.loads(_record_path(path).read_text())
        if record["inputs"] != _inputs(row, trunk):
            return False
        return not Expected(record["size"], record["sha256"]).problem(path)
    except (OSError, ValueError, TypeError, KeyError):
        return False  # not there, or no record of ours: made anew


def _check_framework(row: AdapterRow, config: AdapterConfig) -> None:
    # Its heads could be renamed, but who reads the file could not know of its anchors and pooling.
    if config.framework not in ("detectron2", ""):
        raise UserError(
            f"the adapter {row.name!r} is one of the e3va command: there is no {FULL_FILE} of it; "
            f"use e3va predict e3va://{row.name}, or give its folder to LazyPredictor with a config"
        )


def _make(path: Path, row: AdapterRow, trunk: TrunkRow, force: bool) -> None:
    folder = local_files(row.files, force)[0].parent
    weights = local_files([trunk.file], force)[0]
    adapter, config = read_adapter(folder)
    _check_framework(row, config)
    whole = merge(adapter, config, model_state(load_file(weights), str(weights)), str(weights))
    with writing(path):
        _record_path(path).unlink(missing_ok=True)
        save_atomically({"model": whole, FULL_KEY: config.to_dict()}, path)
        size, sha256 = path.stat().st_size, sha256_of(path)
        with atomic_open(_record_path(path), "w") as file:
            json.dump({"inputs": _inputs(row, trunk), "size": size, "sha256": sha256}, file)
    say(f"{row.name}: adapter and trunk {trunk.name} merged into {path}")
