"""Checkpoints of whole models for Detectron2, merged from a published adapter and its trunk."""

import json
from pathlib import Path

import e3va

from ..adapter_files.files import FULL_KEY, merge, read_adapter
from ..utils.atomic import save_atomically
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from .cache import cache_root, locked, say, sha256_of, writing
from .catalogue import find_row
from .rows import ADAPTERS, AdapterRow, TrunkRow
from .store import local_files

FULL_FILE = "model_final.pth"


def full_checkpoint(row: AdapterRow, force: bool = False) -> Path:
    """Return the file of the whole model's checkpoint, ``{"model": state dict, "e3va": config}``.

    It lies in the cache, and is made again when the adapter, the trunk, this library's version or
    the file itself has changed.

    Raises:
        UserError: the adapter is one of torchvision; it cannot be downloaded, or its trunk cannot;
            the trunk is not the one that it was trained on.
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
    record = path.with_suffix(".json")
    parts = [e3va.__version__, *map(sha256_of, files)]
    with locked(path):
        if not _is_current(path, record, parts):
            state = model_state(load_file(files[-1]), str(files[-1]))
            whole = merge(adapter, config, state, str(files[-1]))
            with writing(path):
                save_atomically({"model": whole, FULL_KEY: config.to_dict()}, path)
                record.write_text(json.dumps([*parts, sha256_of(path)]))
            say(f"{row.name}: adapter and trunk {trunk.name} merged into {path}")
    return path


def _is_current(path: Path, record: Path, parts: list[str]) -> bool:
    try:
        return json.loads(record.read_text()) == [*parts, sha256_of(path)]
    except (OSError, ValueError):
        return False  # there is none yet, or the record is broken
