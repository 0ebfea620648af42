"""Addresses of the zoo, and the files on this machine that they stand for."""

from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from .merged import FULL_FILE, full_checkpoint
from .mirror import current
from .rows import ADAPTER_FILES, ADAPTERS, TRUNKS, AdapterRow, TrunkRow, ZooFile, is_name
from .store import are_valid, local_files
from .table import find_row, table

SCHEME = "e3va://"


@dataclass(frozen=True)
class Place:
    """What an address stands for.

    Attributes:
        row: the trunk or adapter; None for a listing of many.
        name: of the adapter's file, of the listing (``"trunks"``, ``"adapters"``, ``""`` for the
            zoo's root), or ``""`` for a trunk's file and for an adapter's folder.
    """

    row: TrunkRow | AdapterRow | None
    name: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether there are files below it."""
        return self.row is None or (isinstance(self.row, AdapterRow) and not self.name)

    @property
    def files(self) -> tuple[ZooFile, ...]:
        """The table's files that it needs."""
        if isinstance(self.row, TrunkRow):
            return (self.row.file,)
        own = self.row.files if self.row else ()
        return tuple(file for file in own if file.path.endswith(f"/{self.name}")) or own

    def below(self) -> list[str]:
        """The names below it."""
        if isinstance(self.row, AdapterRow):
            return [*ADAPTER_FILES, FULL_FILE]
        if not self.name:
            return [TRUNKS, ADAPTERS]
        known = table()
        if self.name == ADAPTERS:
            return list(known.adapters)
        return [Path(row.file.path).name for row in known.trunks.values()]


def find_place(address: str, refresh: bool = False) -> Place:
    """Read an address: ``e3va://trunks/FILE``, ``e3va://adapters/NAME``, ``…/NAME/FILE``, or with
    the name alone ``e3va://NAME``; a ``/`` at the end makes no difference.

    Args:
        refresh: ask a web mirror for its table again.

    Raises:
        UserError: it is no such address, or the zoo has nothing of that name.
    """
    rest = address.removeprefix(SCHEME).removesuffix("/")
    parts = rest.split("/") if rest else []
    if not address.startswith(SCHEME) or not all(map(is_name, parts)) or len(parts) > 3:
        raise UserError(
            f"{address!r} is no address of the zoo: expected e3va://NAME, e3va://trunks/FILE or "
            "e3va://adapters/NAME, see python -m e3va.model_zoo list"
        )
    if not parts or parts in ([TRUNKS], [ADAPTERS]):
        return Place(None, *parts)
    section = parts.pop(0) if parts[0] in (TRUNKS, ADAPTERS) else ""
    row = find_row(parts[0], refresh)
    kind = TRUNKS if isinstance(row, TrunkRow) else ADAPTERS
    if section not in ("", kind):
        raise UserError(f"{address!r}: {parts[0]!r} is under {kind}, use e3va://{parts[0]}")
    name = "/".join(parts[1:])
    files = (*ADAPTER_FILES, FULL_FILE) if kind == ADAPTERS else ()
    if name and name not in files:
        raise UserError(
            f"{address!r}: {row.name} has no {name!r}"
            + (f", expected one of {', '.join(files)}" if files else ": it is a file itself")
        )
    return Place(row, name)


def local_path(address: str, force: bool = False, refresh: bool = False) -> Path:
    """The file or folder on this machine that an address stands for, downloaded if it is not here.

    Size and sha256 are checked at every call. ``…/model_final.pth`` of an adapter is a checkpoint
    of the whole model in Detectron2's format, merged from the adapter and its trunk.

    Args:
        address: see :func:`find_place`.
        force: download again even what is here.
        refresh: ask a web mirror for its table again, so that what has been published anew since
            is found; a row whose files are not here is asked for again anyway.

    Raises:
        UserError: no such address; the file cannot be had; it is not what the table says.
    """
    place = find_place(address, force or refresh)
    if place.row is None:
        first = ", ".join(place.below()[:3])
        raise UserError(f"{address!r} is a listing: add one of its names ({first}, …)")
    mirror = current()
    if mirror and mirror.folder is None and not (force or refresh or are_valid(place.files)):
        place = find_place(address, refresh=True)
    if place.name == FULL_FILE:
        return full_checkpoint(place.row, force)
    paths = local_files(place.files, force)
    return paths[0].parent if place.is_folder else paths[0]


def exists(address: str) -> bool:
    """Whether an address stands for something; nothing is downloaded."""
    try:
        find_place(address)
    except UserError:
        return False
    return True
