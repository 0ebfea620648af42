"""The mirror that an environment variable names: a folder, or a web address, and its own table."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from .cache import cache_root, locked, writing
from .download import Unreachable, read_small
from .progress import say
from .rows import Table, is_web_address, parse_table

MIRROR_VARIABLE = "E3VA_ZOO"
TABLE_FILE = "zoo.json"
_TABLE_CAP = 8 << 20  # bytes


@dataclass(frozen=True)
class Mirror:
    """Where files are looked for in place of their public addresses.

    Attributes:
        address: as the user gave it.
        folder: the same where it is a folder; else None, and it is a web address.
    """

    address: str
    folder: Path | None

    def url(self, path: str) -> str:
        """The web address of a file of the zoo."""
        return f"{self.address.rstrip('/')}/{quote(path)}"

    def table(self, refresh: bool = False) -> Table:
        """The mirror's own rows; empty if it has no table.

        Args:
            refresh: ask a web mirror again even if a copy of its table is here. Where it cannot
                be reached the copy serves.

        Raises:
            UserError: the table breaks a rule, see :func:`e3va.model_zoo.rows.parse_table`.
        """
        if self.folder is not None:
            file = self.folder / TABLE_FILE
            return parse_table(_read(file), str(file)) if file.is_file() else Table()
        copy = self._copy()
        if not refresh and copy is not None:
            return copy
        try:
            url = self.url(TABLE_FILE)
            text = read_small(url, _TABLE_CAP)
        except Unreachable as reason:
            if "answers 404" not in str(reason):  # a mirror of trunks alone has no table
                with_copy = "" if copy is None else "; the copy from before is used"
                say(f"the table of {self.address} could not be read ({reason}){with_copy}")
            return copy or Table()
        table = parse_table(text, url)
        copy_path = self._copy_path
        with locked(copy_path), writing(copy_path), atomic_open(copy_path) as file:
            file.write(text)
        return table

    @property
    def _copy_path(self) -> Path:
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        return cache_root() / "mirrors" / f"{digest}.json"

    def _copy(self) -> Table | None:
        if not self._copy_path.is_file():
            return None
        try:
            return parse_table(_read(self._copy_path), str(self._copy_path))
        except UserError:
            return None  # damaged; it is fetched again


def _read(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            data = opened.read(_TABLE_CAP + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if len(data) > _TABLE_CAP:
        raise UserError(f"{file} is longer than {_TABLE_CAP} bytes: it is not a zoo's table")
    return data


def current() -> Mirror | None:
    """The mirror of the environment variable ``E3VA_ZOO``; None without one.

    Raises:
        UserError: it is neither a folder that is there nor an http or https address.
    """
    value = os.environ.get(MIRROR_VARIABLE, "").strip()
    if not value:
        return None
    if is_web_address(value):
        return Mirror(value, None)
    folder = Path(value).expanduser()
    if "://" in value or not folder.is_dir():
        raise UserError(
            f"{MIRROR_VARIABLE}={value}: expected a folder that is there, or an http or https "
            "address; unset it to use the public addresses"
        )
    return Mirror(value, folder)
