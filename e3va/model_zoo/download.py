"""Downloads with pooch: over http and https only, of limited length, checked before use."""

import io
import sys
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

from ..utils.errors import UserError
from ..utils.optional import require
from .cache import writing

TIMEOUT = 30.0  # seconds without a byte
RETRIES = 2
_CHUNK = 1 << 18


class Unreachable(Exception):
    """A download that failed; the text is the reason."""


class _Limited:
    """A file that refuses more than ``most`` bytes."""

    def __init__(self, file: BinaryIO, most: int, url: str):
        self.file, self.most, self.url = file, most, url

    def write(self, data: bytes) -> None:
        if self.file.tell() + len(data) > self.most:
            raise UserError(
                f"{self.url} is longer than the {self.most} bytes expected; nothing of it is kept: "
                "try again later, or use another mirror"
            )
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _check_redirect(response: Any, *_: Any, **__: Any) -> None:
    """Refuse a redirect from https to http, or to anything else than http and https."""
    if not response.is_redirect:
        return
    to = urljoin(response.url, response.headers["location"])
    if not to.startswith("https:" if response.url.startswith("https:") else ("http:", "https:")):
        raise UserError(f"{response.url} redirects to {to[:200]!r}: expected an https address")


def _receive(url: str, file: BinaryIO, most: int, name: str) -> None:
    pooch, tqdm = require("pooch", "a download"), require("tqdm", "a download").tqdm
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
    # pooch sets the total, but tests the bar for truth before, which fails without one.
    with tqdm(total=1, desc=name, disable=not sys.stderr.isatty(), **options) as bar:
        pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=_CHUNK,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},  # else a length may be that of packed bytes
            hooks={"response": _check_redirect},
        )(url, _Limited(file, most, url), None)


def _unreachable(error: BaseException) -> Unreachable:
    """Return the reason of a failed request: the error that all others were raised from."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return Unreachable(" ".join(str(error).split())[:300] or type(error).__name__)


def read_small(url: str, most: int) -> bytes:
    """Return a file's bytes; do not try again. The errors are those of :func:`download`."""
    require("pooch", "a download")
    from requests import RequestException

    file = io.BytesIO()
    try:
        _receive(url, file, most, url)
    except RequestException as error:
        raise _unreachable(error) from None
    return file.getvalue()


def download(url: str, path: Path, most: int, sha256: str | None = None) -> None:
    """Download a file of at most ``most`` bytes to ``path``, where no file may be.

    pooch tries three times, and compares the sha256 before the file gets its name.

    Raises:
        Unreachable: there is no answer, or no such file.
        UserError: the file has another sha256, is too long or cannot be written, or the server
            redirects to an address that is not allowed.
    """
    pooch = require("pooch", "a download")
    from requests import RequestException

    def receive(url: str, output: str, _: Any) -> None:
        with open(output, "wb") as file:
            _receive(url, file, most, path.name)

    names = {"registry": {path.name: sha256}, "urls": {path.name: url}}
    one = pooch.create(path.parent, base_url="", retry_if_failed=RETRIES, **names)
    with writing(path):
        try:
            one.fetch(path.name, downloader=receive)
        except RequestException as error:
            raise _unreachable(error) from None
        except ValueError as error:  # the message has both sha256
            raise UserError(f"{url}: {error}") from None
