"""From the zoo's addresses to files on this machine."""

from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from .catalogue import find_row, mirror, table
from .rows import ADAPTER_FILES, ADAPTERS, SCHEME, TRUNKS, AdapterRow, TrunkRow, is_name
from .store import FULL_FILE, full_checkpoint, local_files, where


@dataclass(frozen=True)
class Place:
    """A trunk, an adapter, a file of an adapter, or a listing.

    Attributes:
        row: row of the trunk or the adapter; None for a listing.
        name: name of the adapter's file or of the listing; else ``""``.
    """

    row: TrunkRow | AdapterRow | None
    name: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether the place contains files."""
        return self.row is None or (isinstance(self.row, AdapterRow) and not self.name)

    def below(self) -> list[str]:
        """Return the names of its entries."""
        if isinstance(self.row, AdapterRow):
            return [*ADAPTER_FILES, FULL_FILE]
        if not self.name:
            return [TRUNKS, ADAPTERS]
        known = table()
        if self.name == ADAPTERS:
            return list(known.adapters)
        return [Path(row.file.path).name for row in known.trunks.values()]


def find_place(address: str, refresh: bool = False) -> Place:
    """Find the place of an address.

    Args:
        address: ``e3va://trunks/FILE``, ``e3va://adapters/NAME``, ``e3va://adapters/NAME/FILE``, or
            the same without ``trunks/`` and ``adapters/``; it may end in ``/``.
        refresh: whether to download a web mirror's table again.

    Raises:
        UserError: the text is not an address of the zoo, or the zoo has nothing of that name.
    """
    rest = address.removeprefix(SCHEME).removesuffix("/")
    parts = rest.split("/") if rest else []
    if not address.startswith(SCHEME) or not all(map(is_name, parts)) or len(parts) > 3:
        raise UserError(
            f"{address[:200]!r} is not an address of the zoo: expected e3va://NAME, "
            "e3va://trunks/FILE or e3va://adapters/NAME; see e3va zoo list"
        )
    if not parts or parts in ([TRUNKS], [ADAPTERS]):
        return Place(None, *parts)
    section = parts.pop(0) if parts[0] in (TRUNKS, ADAPTERS) else ""
    row = find_row(parts[0], refresh)
    kind = TRUNKS if isinstance(row, TrunkRow) else ADAPTERS
    name, names = "/".join(parts[1:]), Place(row).below() if kind == ADAPTERS else []
    if section not in ("", kind) or name not in ("", *names):
        files = f", which has the files {', '.join(names)}" if names else ""
        raise UserError(f"{address!r}: expected e3va://{kind}/{parts[0]}{files}")
    return Place(row, name)


def local_path(address: str, force: bool = False, refresh: bool = False) -> Path:
    """Return the local file or folder of an address; download it if necessary.

    Size and sha256 are checked at every call. ``e3va://adapters/NAME/model_final.pth`` is a
    checkpoint of the whole model in Detectron2's format, merged from the adapter and its trunk.

    Args:
        address: address of the zoo, see :func:`find_place`.
        force: whether to download the files again even if they are on this machine.
        refresh: whether to download a web mirror's table again, to find adapters that were
            published again under the same name. This also happens before any download.

    Raises:
        UserError: the text is not an address of the zoo, the file cannot be downloaded, or it is
            not the file that the table describes.
    """
    place = find_place(address, force or refresh)
    if place.row is None:
        first = ", ".join(place.below()[:3])
        raise UserError(f"{address!r} is a listing: add one of its names ({first}, ...)")
    if isinstance(mirror(), str) and not (force or refresh or where(place.row.files)):
        place = find_place(address, refresh=True)
    if place.name == FULL_FILE:
        return full_checkpoint(place.row, force)
    named = tuple(file for file in place.row.files if Path(file.path).name == place.name)
    paths = local_files(named or place.row.files, force)
    return paths[0].parent if place.is_folder else paths[0]
