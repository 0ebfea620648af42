"""The zoo's table: the library's own rows, and those that a mirror adds."""

import difflib
from functools import cache
from pathlib import Path

from ..utils.errors import UserError
from . import mirror
from .rows import AdapterRow, Table, TrunkRow, parse_table

FILE = Path(__file__).parent / mirror.TABLE_FILE


@cache
def packaged() -> Table:
    """The rows that come with the library."""
    return parse_table(FILE.read_bytes(), str(FILE), packaged=True)


def table(refresh: bool = True) -> Table:
    """All rows: the library's own and, after them, the mirror's.

    Of two rows with the same name the library's own counts: a mirror cannot change a known sha256.

    Args:
        refresh: ask a web mirror for its table even if a copy of it is here.

    Raises:
        UserError: the mirror's table breaks a rule.
    """
    place = mirror.current()
    return packaged() if place is None else packaged().joined(place.table(refresh))


def list_trunks() -> dict[str, TrunkRow]:
    """The pretrained trunks by name."""
    return dict(table().trunks)


def list_adapters() -> dict[str, AdapterRow]:
    """The published adapters by name."""
    return dict(table().adapters)


def find_row(name: str, refresh: bool = False) -> TrunkRow | AdapterRow:
    """The row of a trunk or an adapter.

    The mirror is asked for its table only about names that neither the library's own table nor the
    copy of the mirror's has, or to ``refresh`` it.

    Raises:
        UserError: there is none; the text has the nearest names.
    """
    known = _table_with(name, refresh)
    row = known.trunks.get(_trunk_name(known, name) or "") or known.adapters.get(name)
    if row is None:
        names = [*known.trunks, *known.adapters]
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        said = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(names)}"
        raise UserError(f"the zoo has no {name!r}: {said}; see python -m e3va.model_zoo list")
    return row


def find_trunk_name(name: str) -> str | None:
    """The name of the trunk that a name or a file's name means; None if the zoo has none such.

    Raises:
        UserError: the mirror's table breaks a rule.
    """
    return _trunk_name(_table_with(name, refresh=False), name)


def _trunk_name(known: Table, name: str) -> str | None:
    if name in known.trunks:
        return name
    return next((row.name for row in known.trunks.values() if _base(row) == name), None)


def _base(row: TrunkRow) -> str:
    return Path(row.file.path).name


def _table_with(name: str, refresh: bool) -> Table:
    """A table that has the name, from as near as there is one."""
    own = packaged()
    if _has(own, name):
        return own
    known = table(refresh)
    return known if refresh or _has(known, name) else table()


def _has(known: Table, name: str) -> bool:
    return name in known.adapters or _trunk_name(known, name) is not None
