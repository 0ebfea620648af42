"""The zoo's table: the library's own rows, and those of the mirror in ``E3VA_ZOO``."""

import difflib
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from .download import Unreachable, cache_root, locked, read_small, say, writing
from .rows import AdapterRow, Table, TrunkRow, is_web_address, parse_table

MIRROR_VARIABLE = "E3VA_ZOO"
TABLE_FILE = "zoo.json"
FILE = Path(__file__).parent / TABLE_FILE
_TABLE_CAP = 8 << 20  # bytes


def mirror() -> Path | str | None:
    """Return the mirror in ``E3VA_ZOO``: the path of a folder, a web address, or None."""
    value = os.environ.get(MIRROR_VARIABLE, "").strip()
    if is_web_address(value):
        return value.rstrip("/")
    folder = Path(value).expanduser()
    if value and ("://" in value or not folder.is_dir()):
        raise UserError(
            f"{MIRROR_VARIABLE}={value}: expected an existing folder, or an http or https "
            "address; unset it to use the public addresses"
        )
    return folder if value else None


@cache
def packaged() -> Table:
    """Return the rows that come with the library."""
    return parse_table(FILE.read_bytes(), str(FILE), packaged=True)


def table(refresh: bool = True) -> Table:
    """Return all rows: the library's own, and those that a mirror adds but does not change.

    ``refresh`` downloads a web mirror's table even if the cache has a copy, which is used if the
    mirror cannot be reached.
    """
    own, other = packaged(), _mirror_table(refresh)
    names = {*own.trunks, *own.adapters, *(row.file.path for row in own.trunks.values())}
    trunks = {n: row for n, row in other.trunks.items() if not {n, row.file.path} & names}
    adapters = {n: row for n, row in other.adapters.items() if n not in names}
    return Table({**trunks, **own.trunks}, {**adapters, **own.adapters})


def _mirror_table(refresh: bool) -> Table:
    place = mirror()
    if place is None:
        return Table()
    if isinstance(place, Path):
        return _read(place / TABLE_FILE)
    url = f"{place}/{TABLE_FILE}"
    copy = cache_root() / "mirrors" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    if refresh or not copy.is_file():
        try:
            text = read_small(url, _TABLE_CAP)
        except Unreachable as error:
            if not str(error).startswith("404"):  # a mirror of trunks needs no table
                use = "; the copy in the cache is used" if copy.is_file() else ""
                say(f"{url} could not be read ({error}){use}")
        else:
            parse_table(text, url)
            with locked(copy), writing(copy), atomic_open(copy) as file:
                file.write(text)
    return _read(copy)


def _read(file: Path) -> Table:
    if not file.is_file():
        return Table()
    if file.stat().st_size > _TABLE_CAP:
        raise UserError(f"{file} is longer than {_TABLE_CAP} bytes: it is not a zoo's table")
    return parse_table(file.read_bytes(), str(file))


def list_trunks() -> dict[str, TrunkRow]:
    """Return the pretrained trunks by name."""
    return dict(table().trunks)


def list_adapters() -> dict[str, AdapterRow]:
    """Return the published adapters by name."""
    return dict(table().adapters)


def _tables(refresh: bool) -> Iterator[Table]:
    """Yield tables; the last one may need a request to a web mirror."""
    yield packaged()
    if not refresh:
        yield table(refresh=False)
    yield table(refresh=True)


def find_row(name: str, refresh: bool = False) -> TrunkRow | AdapterRow:
    """Return the row of a trunk or an adapter, by its name or by the name of the trunk's file.

    A web mirror's table is downloaded if no table here has the name, or to ``refresh`` the copy.
    """
    for known in _tables(refresh):
        row = known.find(name)
        if row is not None:
            return row
    names = [*known.trunks, *known.adapters]
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    listed = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(names)}"
    raise UserError(f"the zoo has no {name!r}: {listed}; see e3va zoo list")


def find_trunk_name(name: str) -> str | None:
    """Return the name of the trunk with this name or file name; None if the zoo has none."""
    rows = (known.find(name) for known in _tables(refresh=False))
    return next((row.name for row in rows if isinstance(row, TrunkRow)), None)
