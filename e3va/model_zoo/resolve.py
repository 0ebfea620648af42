"""``e3va://`` and ``hf://`` addresses: the files on this machine.

A handler for iopath's path managers reads ``e3va://`` addresses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from iopath.common.file_io import PathHandler, PathManager, g_pathmgr

from ..utils.errors import UserError
from .catalogue import find_row, mirror, table
from .hub import fetch
from .rows import ADAPTER_FILES, ADAPTERS, HUB, SCHEME, TRUNKS, AdapterRow, TrunkRow, is_name
from .store import FULL_FILE, full_checkpoint, local_files, plain_copy, where


@dataclass(frozen=True)
class Place:
    """A trunk, an adapter, a file of an adapter, or a listing."""

    row: TrunkRow | AdapterRow | None  # None for a listing
    name: str = ""  # name of the adapter's file or of the listing

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
    """Find the place of an address; ``refresh`` downloads a web mirror's table again.

    Addresses are ``e3va://trunks/FILE``, ``e3va://adapters/NAME``, ``e3va://adapters/NAME/FILE``,
    and the same without ``trunks/`` and ``adapters/``; they may end in ``/``.
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
        address: ``e3va://trunks/FILE``, ``e3va://adapters/NAME``, ``e3va://NAME``, or one on the
            hub, see :func:`e3va.model_zoo.hub.fetch`.
        force: whether to download the files again even if they are on this machine.
        refresh: whether to download a web mirror's table again, to find adapters that were
            published again under the same name. This also happens before any download.

    Raises:
        UserError: the text is not an address of the zoo, the file cannot be downloaded, or it is
            not the file that the table describes.
    """
    if address.startswith(HUB):
        return fetch(address, force)[0]
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


def pinned(name: str) -> str:
    """Return an address on the hub with its commit, after a download; another text unchanged."""
    return fetch(name)[1] if name.startswith(HUB) else name


class E3VAPathHandler(PathHandler):
    """Read-only access to the zoo's files, which are downloaded if they are not in the cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(plain_copy(local_path(path, force)))

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> IO[str] | IO[bytes]:
        if mode not in ("r", "rt", "rb"):
            raise UserError(f"{path} cannot be opened with mode {mode!r}: the zoo is read-only")
        local = plain_copy(local_path(path))
        if local.is_dir():
            raise UserError(f"{path} is a folder: add one of {', '.join(self._ls(path))}")
        return open(local, mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (True, False), **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (False,), **kwargs)

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (True,), **kwargs)

    def _is(self, path: str, folder: tuple[bool, ...], **kwargs: Any) -> bool:
        self._check_kwargs(kwargs)
        try:
            return find_place(path).is_folder in folder
        except UserError:
            return False

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        self._check_kwargs(kwargs)
        place = find_place(path)
        if not place.is_folder:
            raise UserError(f"{path} is a file: expected a folder of the zoo")
        return place.below()


def register(path_manager: PathManager) -> None:
    """Let a path manager read ``e3va://`` addresses; a second call changes nothing."""
    try:
        path_manager.register_handler(E3VAPathHandler(), allow_override=False)
    except KeyError:
        return  # it is registered already


register(g_pathmgr)
