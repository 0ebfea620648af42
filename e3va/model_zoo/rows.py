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
from .download import sha256_of

SCHEME = "e3va://"
HUB = "hf://"  # see e3va.model_zoo.hub
SCHEMES = SCHEME, HUB
FORMAT = 1
SIZE_CAP = 2 << 30  # bytes; the largest published Swin has 0.9e9
ADAPTER_FILES = (MODEL_FILE, CONFIG_FILE)
TRUNKS, ADAPTERS = "trunks", "adapters"
# Programs unpickle ".pkl" files without a check, and unpickling can run code.
TRUNK_SUFFIXES = (".pth", ".safetensors")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class ZooFile:
    """One file of the zoo."""

    path: str  # below a mirror and below the cache: trunks/... or adapters/NAME/...
    size: int | None = None  # number of bytes; None if it is not public
    sha256: str = ""  # all 64 hexadecimal digits, the first ones that are public, or ""
    url: str = ""  # public address; "" for a file that is only on a mirror
    asset: str = ""  # path below the package's assets folder, for a file of the library

    @property
    def is_verifiable(self) -> bool:
        """Whether the whole sha256 is public."""
        return len(self.sha256) == 64

    def problem(self, path: Path) -> str:
        """Return how the file at ``path`` differs, with both values; ``""`` if it is right."""
        size = path.stat().st_size
        if size != (size if self.size is None else self.size) or size > SIZE_CAP:
            return f"{size} bytes instead of {self.size or f'at most {SIZE_CAP}'}"
        digest = sha256_of(path) if self.sha256 else ""
        if not digest.startswith(self.sha256):
            return f"sha256 {digest} instead of {self.sha256}{'' if self.is_verifiable else '...'}"
        return ""


@dataclass(frozen=True)
class TrunkRow:
    """A pretrained Swin; ``preset`` is a key of :data:`e3va.PRESETS`."""

    name: str
    preset: str
    pretraining: str
    file: ZooFile

    @property
    def files(self) -> tuple[ZooFile, ...]:
        """All files."""
        return (self.file,)


@dataclass(frozen=True)
class AdapterRow:
    """A published adapter."""

    name: str
    framework: str  # "torchvision", "detectron2" or "", as in its adapter_config.json
    config: str  # a Detectron2 config's path below configs, or the kind of a torchvision model
    trunk: str  # name of the trunk that it was trained on
    files: tuple[ZooFile, ...]  # in the order of ADAPTER_FILES
    classes: tuple[str, ...] = ()  # names, in the order of the model's outputs
    trained_on: str = ""  # description of the data, for people
    scores: dict[str, float] = field(default_factory=dict)  # measured values, for people

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


def _text(holds: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: isinstance(value, str) and holds(value)


# Each rule: a text of what is expected, and a test. Control characters could command the terminal.
_LINE = "a line of printable text", _text(lambda v: v.isprintable() and len(v) <= 500)
_PART = (
    "letters, digits, '_', '-' and single dots",
    _text(lambda v: is_name(v) and v not in (TRUNKS, ADAPTERS)),
)
_TRUNK_FILE = (
    f"trunks/NAME{' or '.join(TRUNK_SUFFIXES)}",
    _text(lambda v: v[:7] == "trunks/" and is_name(v[7:]) and v.endswith(TRUNK_SUFFIXES)),
)
_SHA256 = "64 hexadecimal digits in lower case", _text(re.compile("[0-9a-f]{64}").fullmatch)
_PREFIX = "6 to 63 hexadecimal digits in lower case", _text(re.compile("[0-9a-f]{6,63}").fullmatch)
_URL = "an http or https address", _text(is_web_address)
_ASSET = "a path below the package's assets", _text(lambda v: all(map(is_name, v.split("/"))))
_NO_ASSET = "no asset outside the library's own table", lambda v: False
_SIZE = f"a whole number up to {SIZE_CAP}", lambda v: type(v) is int and 0 < v <= SIZE_CAP
_NUMBER = "a finite number", lambda v: type(v) in (int, float) and -1e12 < v < 1e12
_LIST = "a list", lambda v: isinstance(v, list)
_OBJECT = "a JSON object", lambda v: isinstance(v, dict)
_FILES = " and ".join(ADAPTER_FILES), lambda v: isinstance(v, dict) and v.keys() == {*ADAPTER_FILES}
_ENTRY = "size and sha256", lambda v: isinstance(v, dict) and v.keys() == {"size", "sha256"}


def _check(value: Any, key: str, rule: tuple[str, Callable[[Any], Any]]) -> Any:
    expected, holds = rule
    if not holds(value):
        raise ValueError(f"{key} {str(value)[:80]!r}: expected {expected}")
    return value


def _optional(row: Mapping[str, Any], key: str, rule: tuple, default: Any = "") -> Any:
    return default if row.get(key) is None else _check(row[key], key, rule)


def parse_table(text: str | bytes, source: str, packaged: bool = False) -> Table:
    """Read and check a ``zoo.json`` that anybody may have written; ``source`` is its name.

    Only the library's own table (``packaged``) may name files of the package.

    Raises:
        UserError: the text is not a table in this format, or a row breaks a rule.
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
    found: dict[str, dict] = {TRUNKS: {}, ADAPTERS: {}}
    owners: dict[str, str] = {}
    for section, read in ((TRUNKS, _trunk), (ADAPTERS, _adapter)):
        where = f"{source}, {section[:-1]}"
        try:
            for name, row in _optional(data, section, _OBJECT, {}).items():
                where = f"{source}, {section[:-1]} {name[:80]!r}"
                _check(name, "name", _PART)
                _optional(_check(row, "row", _OBJECT), "asset", _ASSET if packaged else _NO_ASSET)
                found[section][name] = read(name, row)
                for key in {name, found[section][name].files[0].path}:
                    if key in owners:
                        raise ValueError(f"{owners[key]!r} has {key} too")
                    owners[key] = name
        except KeyError as error:
            raise UserError(f"{where}: {error} is missing") from None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    return Table(**found)


def _trunk(name: str, row: Mapping[str, Any]) -> TrunkRow:
    digits, prefix = _optional(row, "sha256", _SHA256), _optional(row, "sha256_prefix", _PREFIX)
    file = ZooFile(
        _check(row["file"], "file", _TRUNK_FILE),
        _optional(row, "size", _SIZE, None),
        digits or prefix,
        _optional(row, "url", _URL),
        row.get("asset") or "",
    )
    preset, pretraining = (_check(row[key], key, _LINE) for key in ("preset", "pretraining"))
    return TrunkRow(name, preset, pretraining, file)


def _adapter(name: str, row: Mapping[str, Any]) -> AdapterRow:
    entries = _check(row["files"], "files", _FILES)
    url, asset = _optional(row, "url", _URL).rstrip("/"), row.get("asset")
    files = tuple(
        ZooFile(
            f"{ADAPTERS}/{name}/{base}",
            _check(_check(entries[base], base, _ENTRY)["size"], "size", _SIZE),
            _check(entries[base]["sha256"], "sha256", _SHA256),
            url and f"{url}/{base}",
            f"{asset}/{base}" if asset else "",
        )
        for base in ADAPTER_FILES
    )
    return AdapterRow(
        name,
        _optional(row, "framework", _LINE),
        _optional(row, "config", _LINE),
        _check(row["trunk"], "trunk", _PART),
        files,
        tuple(_check(text, "class", _LINE) for text in _optional(row, "classes", _LIST, [])),
        _optional(row, "trained_on", _LINE),
        {
            _check(key, "score", _LINE): float(_check(value, "score", _NUMBER))
            for key, value in _optional(row, "scores", _OBJECT, {}).items()
        },
    )
