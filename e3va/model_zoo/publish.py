"""Publishing: a finished training becomes files and a row of a zoo."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import CONFIG_FILE, MODEL_FILE, merge, read_adapter
from ..swin.presets import preset_name
from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import DEMO, DEMO_FILE
from .cache import cache_root, locked
from .download import sha256_of
from .mirror import TABLE_FILE
from .progress import say
from .resolve import SCHEME
from .rows import (
    ADAPTER_FILES,
    ADAPTERS,
    FORMAT,
    TRUNK_SUFFIXES,
    TRUNKS,
    Table,
    is_name,
    is_web_address,
    parse_table,
)
from .store import ASSETS
from .table import packaged


@dataclass(frozen=True)
class Published:
    """What :func:`publish` wrote: the adapter's folder, the table's file, the row in it."""

    folder: Path
    table: Path
    row: dict[str, Any]


def publish(
    output: str | os.PathLike,
    name: str,
    to: str | os.PathLike,
    *,
    url: str = "",
    trunk: str = "",
    replace: bool = False,
) -> Published:
    """Write a finished training's adapter and its row into the folder of a zoo.

    The folder is a mirror at once: set the environment variable ``E3VA_ZOO`` to it, or to the
    address of a web server that serves it.

    Args:
        output: the training's output folder.
        name: for the adapter: letters, digits, ``_``, ``-`` and single dots.
        to: the zoo's folder, made if it is not there.
        url: public address that the folder has, or will have, if it is to be in the row.
        trunk: the trunk's name in the zoo, if its file's name does not tell; or a file, which is
            then published too.
        replace: whether a name that is taken may be overwritten.

    Raises:
        UserError: an unfinished training, broken files, a name that is taken, an unknown trunk or
            another one than that of the training. Nothing has been written then.
    """
    output, to = Path(output), Path(to)
    if not is_name(name) or name in (TRUNKS, ADAPTERS):
        raise UserError(f"--name {name!r}: expected letters, digits, '_', '-' and single dots")
    if url and not is_web_address(url):
        raise UserError(f"--url {url!r}: expected an http or https address")
    adapter, config = _finished(output)
    folder = to / ADAPTERS / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(to / TABLE_FILE):
            data, known = _read_table(to / TABLE_FILE)
            _check_free(name, known, replace)
            trunk_name, new = _trunk_row(config, trunk, known, url)
            _check_trunk(adapter, config, known, to, trunk_name, Path(trunk) if new else None)
            if new:
                _copy(Path(trunk), to / new["file"])
                data.setdefault(TRUNKS, {})[trunk_name] = new
            files = {base: _copy(output / base, folder / base) for base in ADAPTER_FILES}
            row = _row(config, trunk_name, files, url and f"{url.rstrip('/')}/{ADAPTERS}/{name}")
            data.setdefault(ADAPTERS, {})[name] = row
            text = json.dumps(data, indent=2, ensure_ascii=False)
            parse_table(text, f"the row of {name}")
            with atomic_open(to / TABLE_FILE) as file:
                file.write(text.encode() + b"\n")
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror or error})") from None
    finally:
        _remove_if_empty(folder)
    return Published(folder, to / TABLE_FILE, row)


def _finished(output: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    missing = [base for base in (MODEL_FILE, CONFIG_FILE) if not (output / base).is_file()]
    if missing:
        raise UserError(
            f"{output} has no {' and no '.join(missing)}: expected the output folder of a finished "
            "training, which writes both at its end; go on with it by --resume"
        )
    return read_adapter(output)


def _read_table(file: Path) -> tuple[dict[str, Any], Table]:
    if not file.is_file():
        return {"format": FORMAT, TRUNKS: {}, ADAPTERS: {}}, Table()
    text = file.read_bytes()
    return json.loads(text), parse_table(text, str(file))


def _check_free(name: str, known: Table, replace: bool) -> None:
    if name in known.trunks or name in packaged().trunks:
        raise UserError(f"--name {name}: a trunk has that name; choose another one")
    if not replace and (name in known.adapters or name in packaged().adapters):
        raise UserError(
            f"--name {name}: an adapter of that name is published; choose another one, or add "
            "--replace to overwrite it"
        )


def _trunk_row(
    config: AdapterConfig, given: str, known: Table, url: str
) -> tuple[str, dict[str, Any]]:
    """The trunk's name in the zoo and, if it is a file that is published with it, its new row."""
    names = {**packaged().trunks, **known.trunks}
    by_file = {Path(row.file.path).name: row.name for row in names.values()}
    source = (given or config.trunk.source).removeprefix(SCHEME).removeprefix(f"{TRUNKS}/")
    if source == DEMO:
        return DEMO_FILE.stem, {}
    base = Path(source).name
    found = next((n for n in (base, Path(base).stem, by_file.get(base)) if n in names), None)
    if found:
        return found, {}
    path = Path(given)
    if not given or not path.is_file():
        raise UserError(
            f"the trunk {given or config.trunk.source!r} is none of the zoo ({', '.join(names)}): "
            "give its name there with --trunk NAME, or its file with --trunk FILE to publish it too"
        )
    if not is_name(path.name) or path.suffix not in TRUNK_SUFFIXES:
        raise UserError(f"--trunk {given}: expected a file NAME{' or NAME'.join(TRUNK_SUFFIXES)}")
    row = {
        "preset": preset_name(config.backbone.preset) or str(config.backbone.preset),
        "pretraining": "the publisher's own",
        "file": f"{TRUNKS}/{path.name}",
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
    }
    if url:
        row["url"] = f"{url.rstrip('/')}/{TRUNKS}/{path.name}"
    return path.stem, row


def _check_trunk(
    adapter: dict[str, Tensor],
    config: AdapterConfig,
    known: Table,
    to: Path,
    name: str,
    file: Path | None,
) -> None:
    """Compare the trunk with that of the training, where it is on this machine."""
    row = packaged().trunks.get(name) or known.trunks.get(name)
    places = [file] if file else []
    if row is not None:
        places = [to / row.file.path, cache_root() / row.file.path]
        if row.file.asset:
            places = [ASSETS / row.file.asset]
    for place in places:
        if place.is_file():
            merge(adapter, config, model_state(load_file(place), str(place)), str(place))
            return
    say(f"the trunk {name} is not on this machine: not compared with that of the training")


def _copy(source: Path, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as file, atomic_open(target) as copy:
        shutil.copyfileobj(file, copy)
    return {"size": target.stat().st_size, "sha256": sha256_of(target)}


def _row(config: AdapterConfig, trunk: str, files: dict[str, Any], url: str) -> dict[str, Any]:
    # A Detectron2 config is named by its file, a model of the torchvision framework by its kind.
    kind = config.model.get("config") or config.model.get("model") or ""
    row = {
        "framework": config.framework,
        "config": str(kind),
        "trunk": trunk,
        "files": files,
        "classes": list(config.classes),
        "trained_on": config.trained_on,
        "scores": config.scores,
    }
    return {**row, "url": url} if url else row


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
        folder.parent.rmdir()
    except OSError:
        return  # it has files, or is not there
