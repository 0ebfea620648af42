"""The zoo's table as data: what a row says, and the checks that a row from anybody must pass."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..adapter_files.files import CONFIG_FILE, MODEL_FILE
from ..utils.errors import UserError

FORMAT = 1
SIZE_CAP = 2 << 30  # bytes; the largest published Swin has 0.9e9
ADAPTER_FILES = (MODEL_FILE, CONFIG_FILE)
TRUNKS, ADAPTERS = "trunks", "adapters"
# Unpickling can run code, and programs unpickle ".pkl" files without asking.
TRUNK_SUFFIXES = (".pth", ".safetensors")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{6,63}")
_TEXT_LIMIT = 500


@dataclass(frozen=True)
class ZooFile:
    """One file of the zoo.

    Attributes:
        path: below a mirror and below the cache, ``trunks/…`` or ``adapters/NAME/…``.
        size: in bytes; None where it is not public knowledge.
        sha256: 64 hexadecimal digits; None likewise.
        sha256_prefix: its first digits, where only they are known; else ``""``.
        url: public address; ``""`` for a file that is on a mirror alone.
        asset: below the package's ``assets`` folder, for what comes with the library; else ``""``.
    """

    path: str
    size: int | None = None
    sha256: str | None = None
    sha256_prefix: str = ""
    url: str = ""
    asset: str = ""


@dataclass(frozen=True)
class TrunkRow:
    """A pretrained Swin: its name, size (a key of :data:`e3va.PRESETS`), pretraining and file."""

    name: str
    preset: str
    pretraining: str
    file: ZooFile


@dataclass(frozen=True)
class AdapterRow:
    """A published adapter.

    Attributes:
        name: its own.
        framework: ``"torchvision"``, ``"detectron2"`` or ``""``, as in its ``adapter_config.json``.
        config: of Detectron2 the config's path below ``configs``; of torchvision the model's kind.
        trunk: name of the trunk that it was trained on.
        files: ``adapter_model.safetensors`` and ``adapter_config.json``.
        classes: names, in the order of the model's outputs.
        trained_on, scores: for people.
    """

    name: str
    framework: str
    config: str
    trunk: str
    files: tuple[ZooFile, ...]
    classes: tuple[str, ...] = ()
    trained_on: str = ""
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows by their names."""

    trunks: dict[str, TrunkRow] = field(default_factory=dict)
    adapters: dict[str, AdapterRow] = field(default_factory=dict)

    def joined(self, other: "Table") -> "Table":
        """The rows of both; of two with the same name the one of this table."""
        names = {*self.trunks, *self.adapters}
        files = {row.file.path for row in self.trunks.values()}
        trunks = {
            name: row
            for name, row in other.trunks.items()
            if name not in names and row.file.path not in files
        }
        adapters = {name: row for name, row in other.adapters.items() if name not in names}
        return Table({**trunks, **self.trunks}, {**adapters, **self.adapters})


def is_name(text: str) -> bool:
    """Whether a text can be one part of an address: letters, digits, ``_``, ``-``, single dots."""
    return len(text) <= 200 and _NAME.fullmatch(text) is not None


def parse_table(text: str | bytes, source: str, packaged: bool = False) -> Table:
    """Read and check a ``zoo.json``, which anybody may have written.

    Args:
        text: of the file.
        source: names it in errors.
        packaged: whether it is the library's own, whose rows may point into the package.

    Raises:
        UserError: it is no table of a format known here, or a row breaks a rule; no row is then
            taken over.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise UserError(f"{source} is not a zoo's table: expected a JSON object")
    if data.get("format") != FORMAT or isinstance(data["format"], bool):
        raise UserError(
            f"{source} has format {data.get('format')!r}: this e3va reads format {FORMAT}; "
            "update e3va"
        )
    sections = {}
    for section, read in ((TRUNKS, _trunk), (ADAPTERS, _adapter)):
        rows = data.get(section, {})
        if not isinstance(rows, dict):
            raise UserError(f"{source}: {section!r} is no JSON object of rows by name")
        sections[section] = {
            name: _checked(read, name, row, f"{source}, {section[:-1]} {name!r}", packaged)
            for name, row in rows.items()
        }
    table = Table(**sections)
    _check_unique(table, source)
    return table


def _checked(read: Callable, name: str, row: Any, source: str, packaged: bool) -> Any:
    try:
        if not is_name(name) or name in (TRUNKS, ADAPTERS):
            raise ValueError("the name must consist of letters, digits, '_', '-' and single dots")
        if not isinstance(row, dict):
            raise ValueError("expected a JSON object")
        if not packaged and _has_asset(row):
            raise ValueError("'asset' is for files that come with e3va")
        return read(name, row)
    except KeyError as error:
        raise UserError(f"{source}: {error} is missing") from None
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _has_asset(row: Mapping[str, Any]) -> bool:
    files = row.get("files")
    inner = files.values() if isinstance(files, dict) else ()
    return any("asset" in entry for entry in (row, *inner) if isinstance(entry, dict))


def _check_unique(table: Table, source: str) -> None:
    twice = table.trunks.keys() & table.adapters.keys()
    if twice:
        raise UserError(f"{source}: {min(twice)!r} is the name of a trunk and of an adapter")
    owners: dict[str, str] = {}
    for row in table.trunks.values():
        other = owners.setdefault(row.file.path, row.name)
        if other != row.name:
            raise UserError(f"{source}: {other!r} and {row.name!r} have one file, {row.file.path}")


def _trunk(name: str, row: Mapping[str, Any]) -> TrunkRow:
    path = _text(row, "file")
    folder, _, base = path.rpartition("/")
    if folder != TRUNKS or not is_name(base) or not base.endswith(TRUNK_SUFFIXES):
        raise ValueError(f"file {path!r}: expected trunks/NAME{' or '.join(TRUNK_SUFFIXES)}")
    file = ZooFile(
        path,
        _size(row.get("size")),
        _sha256(row.get("sha256")),
        _prefix(row.get("sha256_prefix")),
        _url(row.get("url")),
        _asset(row.get("asset")),
    )
    return TrunkRow(name, _text(row, "preset"), _text(row, "pretraining"), file)


def _adapter(name: str, row: Mapping[str, Any]) -> AdapterRow:
    files = row["files"]
    if not isinstance(files, dict) or set(files) != set(ADAPTER_FILES):
        raise ValueError(f"'files' must be {' and '.join(ADAPTER_FILES)}")
    url, asset = _url(row.get("url")), _asset(row.get("asset"))
    read = []
    for base in ADAPTER_FILES:
        entry = files[base]
        if not isinstance(entry, dict) or None in (entry.get("size"), entry.get("sha256")):
            raise ValueError(f"{base} has no size or no sha256")
        read.append(
            ZooFile(
                f"{ADAPTERS}/{name}/{base}",
                _size(entry["size"]),
                _sha256(entry["sha256"]),
                url=url and f"{url.rstrip('/')}/{base}",
                asset=asset and f"{asset}/{base}",
            )
        )
    trunk = _text(row, "trunk")
    if not is_name(trunk):
        raise ValueError(f"trunk {trunk!r}: expected the name of a trunk")
    classes, scores = row.get("classes", []), row.get("scores", {})
    if not isinstance(classes, list) or not isinstance(scores, dict):
        raise ValueError("'classes' must be a list, and 'scores' an object")
    for value in scores.values():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not -1e12 < value < 1e12:
            raise ValueError(f"score {str(value)[:40]}: expected a finite number")
    return AdapterRow(
        name,
        _text(row, "framework", ""),
        _text(row, "config", ""),
        trunk,
        tuple(read),
        tuple(_printable(c, "class") for c in classes),
        _text(row, "trained_on", ""),
        {_printable(key, "score"): float(value) for key, value in scores.items()},
    )


def _text(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    return _printable(row[key] if default is None else row.get(key, default), key)


def _printable(value: Any, what: str) -> str:
    # What goes to a terminal must not command it.
    if not isinstance(value, str) or not value.isprintable() or len(value) > _TEXT_LIMIT:
        raise ValueError(f"{what}: expected a line of printable text")
    return value


def _size(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= SIZE_CAP:
        raise ValueError(f"size {str(value)[:40]}: expected a whole number of bytes to {SIZE_CAP}")
    return value


def _sha256(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        raise ValueError("sha256: expected 64 hexadecimal digits in lower case")
    return value


def _prefix(value: Any) -> str:
    if value is not None and not (isinstance(value, str) and _PREFIX.fullmatch(value)):
        raise ValueError("sha256_prefix: expected 6 to 63 hexadecimal digits in lower case")
    return value or ""


def _url(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not is_web_address(value):
        raise ValueError(f"url {str(value)[:80]!r}: expected an http or https address")
    return value


def is_web_address(text: str) -> bool:
    """Whether a text is an http or https address that a request can be sent to."""
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for what is no number
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text and "\\" not in text
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def _asset(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not all(is_name(part) for part in value.split("/")):
        raise ValueError(f"asset {value!r}: expected a path below the package's assets")
    return value
