"""The zoo's folder in iopath's cache, and downloads into it with pooch.

Downloads are only over http and https, of limited length, and are checked before use.
"""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin

from iopath.common.file_io import file_lock

from ..utils.atomic import WriteError
from ..utils.errors import UserError
from ..utils.optional import require

TIMEOUT = 30.0  # seconds without a byte
RETRIES = 2  # after a connection that was cut
_CHUNK = 1 << 18


def cache_root() -> Path:
    """Return the folder: ``e3va`` in ``FVCORE_CACHE``, by default in ``~/.torch/iopath_cache``."""
    return Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser() / "e3va"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's error into a UserError of one line."""
    try:
        yield
    except (OSError, WriteError) as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror or error
        raise UserError(
            f"{path} cannot be written ({reason}): free some space, get write permission, or set "
            "FVCORE_CACHE to another folder"
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; only one process or thread at a time can hold it."""
    with contextlib.ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(str(path)))
        yield


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Unreachable(Exception):
    """A download that failed; the text is the reason."""


class _Limited:
    """A file that refuses more than ``most`` bytes."""

    def __init__(self, file: BinaryIO, most: int, url: str):
        self.file, self.most, self.url, self.flush = file, most, url, file.flush

    def write(self, data: bytes) -> None:
        if self.file.tell() + len(data) > self.most:
            raise UserError(
                f"{self.url} is longer than the {self.most} bytes expected; nothing of it is kept: "
                "try again later, or use another mirror"
            )
        self.file.write(data)


def _check_redirect(response: Any, *_: Any, **__: Any) -> None:
    """Refuse a redirect from https to http, or to anything else than http and https."""
    if not response.is_redirect:
        return
    to = urljoin(response.url, response.headers["location"])
    if not to.startswith("https:" if response.url.startswith("https:") else ("http:", "https:")):
        raise UserError(f"{response.url} redirects to {to[:200]!r}: expected an https address")


def _receive(url: str, file: BinaryIO, most: int, name: str) -> None:
    """Write the file at ``url``; raise an error of requests only if the connection was cut."""
    pooch, tqdm = require("pooch", "a download"), require("tqdm", "a download").tqdm
    from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout

    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
    try:
        # pooch sets the total, but tests the bar for truth before, which fails without one.
        with tqdm(total=1, desc=name, disable=not sys.stderr.isatty(), **options) as bar:
            pooch.HTTPDownloader(
                progressbar=bar,
                chunk_size=_CHUNK,
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity"},  # or a length may count packed bytes
                hooks={"response": _check_redirect},
            )(url, _Limited(file, most, url), None)
    except (ChunkedEncodingError, ConnectionError, Timeout):
        raise
    except (RequestException, ValueError) as error:
        raise _unreachable(error) from None


def _unreachable(error: BaseException) -> Unreachable:
    """Return the reason of a failed request: the error that all others were raised from."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return Unreachable(" ".join(str(error).split())[:300] or type(error).__name__)


def read_small(url: str, most: int) -> bytes:
    """Return a file's bytes; do not try again. The errors are those of :func:`download`."""
    file = io.BytesIO()
    try:
        _receive(url, file, most, url)
    except OSError as error:  # errors of requests are of this kind
        raise _unreachable(error) from None
    return file.getvalue()


def download(url: str, path: Path, most: int, find_problem: Callable[[Path], str]) -> None:
    """Download a file to ``path``, where no file may be.

    If the connection is cut, pooch tries again; the file gets its name after the check.
    ``find_problem`` maps the downloaded file, of at most ``most`` bytes, to its problem or ``""``.

    Raises:
        Unreachable: the server does not answer, or does not send the file.
        UserError: the file has a problem, is too long or cannot be written, or the server
            redirects to an address that is not allowed.
    """
    pooch = require("pooch", "a download")
    from requests import RequestException

    def receive(url: str, output: str, _: Any) -> None:
        os.remove(output)  # pooch made a file for its owner only; a new one has the usual mode
        with open(output, "xb") as file:
            _receive(url, file, most, path.name)
        problem = find_problem(Path(output))
        if problem:
            raise UserError(
                f"{url} has {problem}: it is not the file of the zoo's table, and nothing of it is "
                "kept; try again later, or use another mirror"
            )

    names = {"registry": {path.name: None}, "urls": {path.name: url}}
    one = pooch.create(path.parent, base_url="", retry_if_failed=RETRIES, **names)
    with writing(path):
        try:
            one.fetch(path.name, downloader=receive)
        except RequestException as error:
            raise _unreachable(error) from None
