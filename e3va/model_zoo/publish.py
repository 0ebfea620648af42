"""Publish a finished training: its files, and a row in the table of a zoo."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import merge, read_adapter
from ..swin.presets import preset_name
from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import DEMO, DEMO_FILE
from . import rows
from .catalogue import TABLE_FILE, packaged
from .download import cache_root, locked, say, sha256_of
from .store import ASSETS


def publish(
    output: str | os.PathLike,
    name: str,
    to: str | os.PathLike,
    *,
    url: str = "",
    trunk: str = "",
    replace: bool = False,
) -> dict[str, Any]:
    """Copy the adapter of a finished training into the folder of a zoo; return its row there.

    Set the environment variable ``E3VA_ZOO`` to the folder, or to its web address, to use it.

    ``url`` is the public address of the folder ``to``. ``trunk`` is the trunk's name in the zoo, if
    it differs from the name of the trunk's file, or a file to publish with the adapter.

    Raises:
        UserError: the training is not finished, a file is broken, the name is in use, the zoo does
            not have the trunk, or the training had another trunk. Nothing is written then.
    """
    output, to = Path(output), Path(to)
    if not rows.is_name(name) or name in (rows.TRUNKS, rows.ADAPTERS):
        raise UserError(f"--name {name!r}: expected letters, digits, '_', '-' and single dots")
    if url and not rows.is_web_address(url):
        raise UserError(f"--url {url!r}: expected an http or https address")
    trained = read_finished(output)
    folder, url = to / rows.ADAPTERS / name, url.rstrip("/")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(to / TABLE_FILE):
            data, known = _read_table(to / TABLE_FILE)
            trunks = {**known.trunks, **packaged().trunks}
            _check_name(name, trunks, {**known.adapters, **packaged().adapters}, replace)
            trunk_name = name_in_zoo(trained[1], trunk, trunks)
            new = {} if trunk_name else _trunk_row(trained[1], Path(trunk), url)
            check_trunk(trained, Path(trunk) if new else find_file(trunks[trunk_name].file, to))
            if new:
                trunk_name = Path(trunk).stem
                _copy(Path(trunk), to / new["file"])
                data.setdefault(rows.TRUNKS, {})[trunk_name] = new
            row = _adapter_row(trained[1], trunk_name, url and f"{url}/{rows.ADAPTERS}/{name}")
            row["files"] = {
                base: _copy(output / base, folder / base) for base in rows.ADAPTER_FILES
            }
            data.setdefault(rows.ADAPTERS, {})[name] = row
            text = json.dumps(data, indent=2, ensure_ascii=False)
            rows.parse_table(text, f"the row of {name}")
            with atomic_open(to / TABLE_FILE) as file:
                file.write(text.encode() + b"\n")
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):  # a folder with files stays
            folder.rmdir()
            folder.parent.rmdir()
    return row


def read_finished(output: Path) -> tuple[dict[str, Tensor], AdapterConfig]:
    """Read the adapter in the output folder of a training; see :func:`read_adapter`.

    Raises:
        UserError: the training is not finished, or a file is broken.
    """
    missing = [base for base in rows.ADAPTER_FILES if not (output / base).is_file()]
    if missing:
        raise UserError(
            f"{output} has no {' and no '.join(missing)}: expected the output folder of a finished "
            "training, which writes both at its end; continue the training with --resume"
        )
    return read_adapter(output)


def _read_table(file: Path) -> tuple[dict[str, Any], rows.Table]:
    if not file.is_file():
        return {"format": rows.FORMAT}, rows.Table()
    text = file.read_bytes()
    return json.loads(text), rows.parse_table(text, str(file))


def _check_name(name: str, trunks: dict, adapters: dict, replace: bool) -> None:
    if name in trunks:
        raise UserError(f"--name {name}: a trunk has that name; choose another one")
    if name in adapters and not replace:
        raise UserError(
            f"--name {name}: an adapter of that name is published; choose another one, or add "
            "--replace to overwrite it"
        )


def name_in_zoo(config: AdapterConfig, given: str, trunks: dict[str, rows.TrunkRow]) -> str | None:
    """Return the trunk's name in the zoo; None if ``given`` is a file to publish."""
    source = given or config.trunk.source
    source = source.removeprefix(rows.SCHEME).removeprefix(f"{rows.TRUNKS}/")
    if source == DEMO:
        return DEMO_FILE.stem
    base = Path(source).name
    by_file = {Path(row.file.path).name: row.name for row in trunks.values()}
    found = next((n for n in (base, Path(base).stem, by_file.get(base)) if n in trunks), None)
    if found is None and not Path(given).is_file():
        raise UserError(
            f"the trunk {given or config.trunk.source!r} is not in the zoo ({', '.join(trunks)}): "
            "give its name there with --trunk NAME, or its file with --trunk FILE to publish it too"
        )
    return found


def _trunk_row(config: AdapterConfig, path: Path, url: str) -> dict[str, Any]:
    if not rows.is_name(path.name) or path.suffix not in rows.TRUNK_SUFFIXES:
        raise UserError(
            f"--trunk {path}: expected a file NAME{' or NAME'.join(rows.TRUNK_SUFFIXES)}"
        )
    row = {
        "preset": preset_name(config.backbone.preset) or str(config.backbone.preset),
        "pretraining": "the publisher's own",
        "file": f"{rows.TRUNKS}/{path.name}",
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
    }
    return {**row, "url": f"{url}/{row['file']}"} if url else row


def find_file(file: rows.ZooFile, to: Path) -> Path:
    """Return the path of a trunk's file: in the package, in the folder ``to`` or in the cache."""
    if file.asset:
        return ASSETS / file.asset
    path = to / file.path
    return path if path.is_file() else cache_root() / file.path


def check_trunk(trained: tuple[dict[str, Tensor], AdapterConfig], file: Path) -> None:
    """Check that an adapter was trained on the trunk in a file, if the file exists.

    Raises:
        UserError: the training had another trunk.
    """
    if file.is_file():
        merge(*trained, model_state(load_file(file), str(file)), str(file))
    else:
        say("the trunk is not on this machine, so it was not compared with the training's")


def _adapter_row(config: AdapterConfig, trunk: str, url: str) -> dict[str, Any]:
    row = {
        "framework": config.framework,
        # A Detectron2 config's path, or the kind of a torchvision model.
        "config": str(config.model.get("config") or config.model.get("model") or ""),
        "trunk": trunk,
        "files": {},
        "classes": list(config.classes),
        "trained_on": config.trained_on,
        "scores": config.scores,
    }
    return {**row, "url": url} if url else row


def _copy(source: Path, target: Path) -> dict[str, Any]:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as file, atomic_open(target) as copy:
        shutil.copyfileobj(file, copy)
    return {"size": target.stat().st_size, "sha256": sha256_of(target)}
