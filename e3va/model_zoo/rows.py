"""Rows of the zoo's table, and the checks that a row must pass, whoever wrote it."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..adapter_files.files import CONFIG_FILE, MODEL_FILE
from ..utils.errors import UserError
from .cache import sha256_of

SCHEME = "e3va://"
FORMAT = 1
SIZE_CAP = 2 << 30  # bytes; the largest published Swin has 0.9e9
ADAPTER_FILES = (MODEL_FILE, CONFIG_FILE)
TRUNKS, ADAPTERS = "trunks", "adapters"
# Programs unpickle ".pkl" files without a check, and unpickling can run code.
TRUNK_SUFFIXES = (".pth", ".safetensors")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_NAME_RULE = "expected letters, digits, '_', '-' and single dots"
_TEXT_LIMIT = 500


@dataclass(frozen=True)
class ZooFile:
    """One file of the zoo.

    Attributes:
        path: path below a mirror and below the cache, ``trunks/...`` or ``adapters/NAME/...``.
        size: number of bytes; None if it is not public.
        sha256: hexadecimal digits: all 64, the first ones that are public, or ``""``.
        url: public address; ``""`` for a file that is only on a mirror.
        asset: path below the package's ``assets`` folder, for a file of the library; else ``""``.
    """

    path: str
    size: int | None = None
    sha256: str = ""
    url: str = ""
    asset: str = ""

    @property
    def is_verifiable(self) -> bool:
        """Whether the whole sha256 is public."""
        return len(self.sha256) == 64

    def problem(self, path: Path) -> str:
        """Return how the file at ``path`` differs, with both values; ``""`` if it does not."""
        size = path.stat().st_size
        if size != (size if self.size is None else self.size) or size > SIZE_CAP:
            return f"{size} bytes instead of {self.size or f'at most {SIZE_CAP}'}"
        digest = sha256_of(path) if self.sha256 else ""
        if not digest.startswith(self.sha256):
            return f"sha256 {digest} instead of {self.sha256}{'' if self.is_verifiable else '...'}"
        return ""


@dataclass(frozen=True)
class TrunkRow:
    """A pretrained Swin.

    Attributes:
        name: name in the zoo.
        preset: key of :data:`e3va.PRESETS`.
        pretraining: text for people.
        file: weights file.
    """

    name: str
    preset: str
    pretraining: str
    file: ZooFile

    @property
    def files(self) -> tuple[ZooFile, ...]:
        """All files."""
        return (self.file,)

    @property
    def address(self) -> str:
        """``e3va://trunks/NAME``."""
        return f"{SCHEME}{TRUNKS}/{self.name}"


@dataclass(frozen=True)
class AdapterRow:
    """A published adapter.

    Attributes:
        name: name in the zoo.
        framework: ``"torchvision"``, ``"detectron2"`` or ``""``, as in its ``adapter_config.json``.
        config: for Detectron2 the config's path below ``configs``; for torchvision the model's
            kind.
        trunk: name of the trunk that it was trained on.
        files: ``adapter_model.safetensors`` and ``adapter_config.json``.
        classes: names, in the order of the model's outputs.
        trained_on: description of the data, for people.
        scores: measured values by name, for people.
    """

    name: str
    framework: str
    config: str
    trunk: str
    files: tuple[ZooFile, ...]
    classes: tuple[str, ...] = ()
    trained_on: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """``e3va://adapters/NAME``."""
        return f"{SCHEME}{ADAPTERS}/{self.name}"


@dataclass(frozen=True)
class Table:
    """Rows by their names."""

    trunks: dict[str, TrunkRow] = field(default_factory=dict)
    adapters: dict[str, AdapterRow] = field(default_factory=dict)

    def find(self, name: str) -> TrunkRow | AdapterRow | None:
        """Return the row of an adapter, of a trunk, or of a trunk's file; None if there is none."""
        by_file = {Path(row.file.path).name: row for row in self.trunks.values()}
        return self.adapters.get(name) or self.trunks.get(name) or by_file.get(name)


def is_name(text: str) -> bool:
    """Return whether a text can be a part of an address: letters, digits, ``_-``, single dots."""
    return len(text) <= 200 and _NAME.fullmatch(text) is not None


def is_web_address(text: str) -> bool:
    """Return whether a text is an http or https address that a request can be sent to."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and "\\" not in text
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def parse_table(text: str | bytes, source: str, packaged: bool = False) -> Table:
    """Read and check a ``zoo.json``, which anybody may have written.

    Args:
        text: contents of the file.
        source: name of the file, for errors.
        packaged: whether it is the library's own, which may have files in the package.

    Raises:
        UserError: it is no table of a format that this version reads, or a row breaks a rule.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{source} is not a zoo's table: expected a JSON object")
    version = data.get("format")
    if version != FORMAT or isinstance(version, bool):
        raise UserError(
            f"{source} has format {str(version)[:40]!r}: this e3va reads format {FORMAT}; "
            "update e3va"
        )
    table = Table(
        _rows(data, TRUNKS, _trunk, source, packaged),
        _rows(data, ADAPTERS, _adapter, source, packaged),
    )
    twice = table.trunks.keys() & table.adapters.keys()
    if twice:
        raise UserError(f"{source}: {min(twice)!r} is the name of a trunk and of an adapter")
    owners: dict[str, str] = {}
    for row in table.trunks.values():
        other = owners.setdefault(row.file.path, row.name)
        if other != row.name:
            raise UserError(f"{source}: {other!r} and {row.name!r} have one file, {row.file.path}")
    return table


def _rows(
    data: dict[str, Any], section: str, read: Callable, source: str, packaged: bool
) -> dict[str, Any]:
    rows = data.get(section, {})
    if not isinstance(rows, dict):
        raise UserError(f"{source}: {section!r} must be a JSON object of rows by name")
    found = {}
    for name, row in rows.items():
        try:
            _require(is_name(name) and name not in (TRUNKS, ADAPTERS), "name", name, _NAME_RULE)
            _require(isinstance(row, dict), "row", row, "expected a JSON object")
            rule = "only the library's own table may name an asset"
            _require(packaged or "asset" not in row, "asset", row.get("asset"), rule)
            found[name] = read(name, row)
        except KeyError as error:
            raise UserError(f"{source}, {section[:-1]} {name[:80]!r}: {error} is missing") from None
        except ValueError as error:
            raise UserError(f"{source}, {section[:-1]} {name[:80]!r}: {error}") from None
    return found


def _require(condition: bool, key: str, value: Any, rule: str) -> None:
    if not condition:
        raise ValueError(f"{key} {str(value)[:80]!r}: {rule}")


def _trunk(name: str, row: Mapping[str, Any]) -> TrunkRow:
    path = _text(row, "file")
    folder, _, base = path.rpartition("/")
    plain = folder == TRUNKS and is_name(base) and base.endswith(TRUNK_SUFFIXES)
    _require(plain, "file", path, f"expected trunks/NAME{' or '.join(TRUNK_SUFFIXES)}")
    digits = _hex(row, "sha256", 64, 64) or _hex(row, "sha256_prefix", 6, 63)
    file = ZooFile(path, _size(row), digits, _url(row), _asset(row))
    return TrunkRow(name, _text(row, "preset"), _text(row, "pretraining"), file)


def _adapter(name: str, row: Mapping[str, Any]) -> AdapterRow:
    entries, trunk = row["files"], _text(row, "trunk")
    both = isinstance(entries, dict) and set(entries) == set(ADAPTER_FILES)
    _require(both, "files", entries, f"expected {' and '.join(ADAPTER_FILES)}")
    url, asset = _url(row), _asset(row)
    files = []
    for base in ADAPTER_FILES:
        entry = entries[base]
        known = isinstance(entry, dict) and set(entry) == {"size", "sha256"}
        _require(known and None not in entry.values(), base, entry, "expected size and sha256")
        files.append(
            ZooFile(
                f"{ADAPTERS}/{name}/{base}",
                _size(entry),
                _hex(entry, "sha256", 64, 64),
                url and f"{url.rstrip('/')}/{base}",
                asset and f"{asset}/{base}",
            )
        )
    _require(is_name(trunk), "trunk", trunk, "expected the name of a trunk")
    classes, scores = row.get("classes", []), row.get("scores", {})
    _require(isinstance(classes, list), "classes", classes, "expected a list")
    _require(isinstance(scores, dict), "scores", scores, "expected a JSON object")
    for value in scores.values():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(number and -1e12 < value < 1e12, "score", value, "expected a finite number")
    return AdapterRow(
        name,
        _text(row, "framework", ""),
        _text(row, "config", ""),
        trunk,
        tuple(files),
        tuple(_printable(text, "class") for text in classes),
        _text(row, "trained_on", ""),
        {_printable(key, "score"): float(value) for key, value in scores.items()},
    )


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    return _printable(row[key] if default is None else row.get(key, default), key)


def _printable(value: Any, key: str) -> str:
    # Control characters would command the terminal that prints them.
    fine = isinstance(value, str) and value.isprintable() and len(value) <= _TEXT_LIMIT
    _require(fine, key, value, "expected a line of printable text")
    return value


def _size(row: Mapping[str, Any]) -> int | None:
    value = row.get("size")
    if value is not None:
        whole = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= SIZE_CAP
        _require(whole, "size", value, f"expected a whole number of bytes up to {SIZE_CAP}")
    return value


def _hex(row: Mapping[str, Any], key: str, least: int, most: int) -> str:
    value = row.get(key)
    if value is None:
        return ""
    fine = isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{least},{most}}}", value)
    _require(bool(fine), key, value, f"expected {most} hexadecimal digits at most, in lower case")
    return value


def _url(row: Mapping[str, Any]) -> str:
    value = row.get("url")
    if value is None:
        return ""
    fine = isinstance(value, str) and is_web_address(value)
    _require(fine, "url", value, "expected an http or https address")
    return value


def _asset(row: Mapping[str, Any]) -> str:
    value = row.get("asset")
    if value is None:
        return ""
    fine = isinstance(value, str) and all(map(is_name, value.split("/")))
    _require(fine, "asset", value, "expected a path below the package's assets")
    return value
