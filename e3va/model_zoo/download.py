"""Downloads over http and https: resumed, bounded, checked.

What arrives is written to a ``.part`` file, beside which a small JSON file says what it is a part
of, so that a later call, also of another process, goes on where this one was cut off.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import e3va

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from .cache import writing
from .progress import Bar, mebibytes, say
from .rows import SIZE_CAP, is_web_address

TIMEOUT = 30.0  # seconds without a byte
BACKOFF = 0.5  # seconds before the second try; doubled for each further one
TRIES = 5  # in a row that brought nothing
ALL_TRIES = 100
_CHUNK = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_WORTH_A_RETRY = (408, 429, 500, 502, 503, 504)


class Unreachable(Exception):
    """The server, or the file on it, cannot be had now; the text says why."""


class _Cut(Exception):
    """The connection broke; what has arrived is kept. ``tries``: how many it is worth."""

    def __init__(self, text: str, tries: int = TRIES):
        super().__init__(text)
        self.tries = tries


class _Changed(Exception):
    """What has arrived is of another file than what the server has now; the text says why."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file; None and ``""`` for what is not."""

    size: int | None = None
    sha256: str | None = None
    sha256_prefix: str = ""

    @property
    def most(self) -> int:
        """Bytes that it has at most."""
        return SIZE_CAP if self.size is None else self.size

    def problem(self, path: Path) -> str:
        """How a file differs from this, with both values; ``""`` if it does not."""
        try:
            size = path.stat().st_size
            right_size = size <= self.most and self.size in (None, size)
            found = sha256_of(path) if right_size else ""
        except OSError as error:
            return f"an error in reading ({error.strerror})"
        if self.size is not None and size != self.size:
            return f"{size} bytes instead of {self.size}"
        if size > self.most:
            return f"{size} bytes, more than the {self.most} that a file of the zoo can have"
        if found != (self.sha256 or found):
            return f"sha256 {found} instead of {self.sha256}"
        if not found.startswith(self.sha256_prefix):
            return f"sha256 {found} instead of one that begins with {self.sha256_prefix}"
        return ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, and never from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        weaker = req.full_url.startswith("https:") and not newurl.startswith("https:")
        if not is_web_address(newurl) or weaker:
            raise UserError(_redirected(req.full_url, newurl))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _redirected(url: str, to: str) -> str:
    return f"{url} redirects to {to[:200]!r}, which is not followed: expected http(s) all the way"


def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener(): that adds handlers of file, ftp and data addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


@contextlib.contextmanager
def _response(url: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
    """A server's answer 200, 206 or 416.

    Raises:
        _Cut, Unreachable: it has none, now or at all.
        UserError: it redirects to where nobody should go.
    """
    if not is_web_address(url):
        raise UserError(f"{url!r} cannot be downloaded: expected an http or https address")
    headers = {"User-Agent": f"e3va/{e3va.__version__}", **headers}
    try:
        with _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as got:
            yield got
    except urllib.error.HTTPError as error:
        with error:
            if 300 <= error.code < 400:
                to = str(error.headers.get("Location"))
                raise UserError(_redirected(url, to)) from None
            if error.code == 416:
                raise _Changed("the server has no more than what has arrived") from None
            what = f"the server answers {error.code} {error.reason}"
            raise (_Cut(what) if error.code in _WORTH_A_RETRY else Unreachable(what)) from None
    except urllib.error.URLError as error:
        raise _network(error.reason) from None
    except (http.client.HTTPException, OSError) as error:
        raise _network(error) from None


def _network(error: Any) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(f"its certificate is not trusted: {error.verify_message}")
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    text = text or type(error).__name__
    # No name server or nobody listening: hardly a passing fault.
    down = isinstance(error, socket.gaierror | ConnectionRefusedError)
    return _Cut(text, 2 if down else TRIES)


def read_small(url: str, most: int) -> bytes:
    """The bytes at an address, in one or two tries; for a table.

    Raises:
        Unreachable: there is no answer.
        UserError: the answer is longer than ``most``, or a redirect that is not followed.
    """
    for last in (False, True):
        try:
            with _response(url, {}) as response:
                data = response.read(most + 1)
            if len(data) > most:
                raise UserError(f"{url} is longer than {most} bytes: it is not a zoo's table")
            return data
        except (_Cut, _Changed) as error:
            if last:
                raise Unreachable(str(error)) from None
            time.sleep(BACKOFF)
    raise AssertionError("not reached")


def download(url: str, part: Path, expected: Expected) -> None:
    """Download a file to ``part`` and check it there, going on with what is there already.

    Raises:
        Unreachable: the server cannot be reached or does not have the file; what has arrived is
            kept.
        UserError: what the server has is not what was expected (nothing is kept); the disk is
            full or cannot be written.
    """
    state = _State(part)
    for from_scratch in (False, True):
        resumed = _receive(url, part, state, expected)
        problem = expected.problem(part)
        if not problem:
            state.forget()
            return
        state.drop()
        if from_scratch or not resumed:
            break
        say(f"{part.stem}: the resumed download has {problem}; downloading it from scratch")
    raise UserError(
        f"{url} is not the file expected: it has {problem}; nothing of it is kept. Try again later "
        "or use another mirror"
    )


class _State:
    """The ``.part`` file and the note of what it is a part of."""

    def __init__(self, part: Path):
        self.part, self.note = part, part.with_name(part.name + ".json")

    def read(self) -> dict[str, Any]:
        """The note; empty if there is none."""
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def have(self, url: str) -> int:
        """Bytes that have arrived from ``url``."""
        if self.read().get("url") != url or not self.part.is_file():
            return 0
        return self.part.stat().st_size

    def write(self, **note: Any) -> None:
        """Note what the part is of."""
        with atomic_open(self.note, "w") as file:
            json.dump(note, file)

    def forget(self) -> None:
        """The part is complete."""
        self.note.unlink(missing_ok=True)

    def drop(self) -> None:
        """Throw away what has arrived."""
        self.forget()
        self.part.unlink(missing_ok=True)

    def open(self, append: bool) -> BinaryIO:
        """Open the part for writing; not through a link, which could lead anywhere."""
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
        handle = os.open(self.part, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        return os.fdopen(handle, "ab" if append else "wb")


def _receive(url: str, part: Path, state: _State, expected: Expected) -> bool:
    """Let all bytes arrive; whether they come from more than one answer."""
    resumed = False
    farthest = in_vain = 0
    with Bar(part.stem, url) as bar:
        for _ in range(ALL_TRIES):
            before = state.have(url)
            resumed = resumed or before > 0
            farthest = max(farthest, before)
            if before and before in (expected.size, state.read().get("total")):
                return resumed
            try:
                _request(url, state, expected, bar)
                return resumed
            except _Changed as error:
                with writing(part):
                    state.drop()
                resumed, reason, tries = False, f"{error}; from the start", TRIES
            except _Cut as error:
                reason, tries = str(error), error.tries
            in_vain = 0 if state.have(url) > farthest else in_vain + 1
            if in_vain >= tries:
                break
            bar.say(f"{part.stem}: {reason}; trying again")
            time.sleep(BACKOFF * 2 ** max(in_vain - 1, 0))
    raise Unreachable(reason)


def _request(url: str, state: _State, expected: Expected, bar: Bar) -> None:
    have, note = state.have(url), state.read()
    headers = {}
    if have:
        headers["Range"] = f"bytes={have}-"
        if note.get("etag"):
            headers["If-Range"] = note["etag"]
    with _response(url, headers) as response:
        etag = response.headers.get("ETag") or ""
        if etag.startswith("W/"):
            etag = ""  # a weak one does not promise the same bytes
        if response.status == 206:
            total = _check_range(response, have, note, etag)
        elif response.status == 200:
            have, total = 0, response.length
        else:
            raise Unreachable(f"the server answers {response.status}")
        _check_total(url, total, expected, state)
        with writing(state.part):
            _check_space(state.part, (expected.size or total or 0) - have)
            file = state.open(append=have > 0)
        with file:
            if not have:
                with writing(state.part):
                    state.write(url=url, etag=etag, total=total)
            bar.begin(have, total)
            have = _copy(response, file, state.part, have, expected, bar)
    if have > expected.most:
        with writing(state.part):
            state.drop()
        raise UserError(
            f"{url} is longer than the {expected.most} bytes expected: stopped there, nothing of "
            "it is kept. Try again later or use another mirror"
        )
    wanted = expected.size if total is None else total
    if wanted is not None and have < wanted:
        raise _Cut(f"the connection was cut after {have} of {wanted} bytes")


def _check_range(response: Any, have: int, note: dict[str, Any], etag: str) -> int:
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != have:
        raise _Changed("the server sends other bytes than those asked for")
    total = int(match[3])
    known = note.get("total")
    if known not in (None, total) or note.get("etag", "") not in ("", etag):
        raise _Changed("the server's file has changed")
    return total


def _check_total(url: str, total: int | None, expected: Expected, state: _State) -> None:
    """Refuse a wrong size before any byte of it is read."""
    if total is None or (total == expected.size or expected.size is None and total <= SIZE_CAP):
        return
    with writing(state.part):
        state.drop()
    wanted = expected.size if expected.size is not None else f"at most {SIZE_CAP}"
    raise UserError(
        f"{url} is not the file expected: the server offers {total} bytes instead of {wanted}; "
        "nothing of it is kept. Try again later or use another mirror"
    )


def _copy(
    response: Any, file: BinaryIO, part: Path, have: int, expected: Expected, bar: Bar
) -> int:
    """Write what arrives; returns the bytes that have arrived altogether."""
    while have <= expected.most:
        try:
            data = response.read1(min(_CHUNK, expected.most + 1 - have))
        except (http.client.HTTPException, OSError) as error:
            raise _network(error) from None
        if not data:
            break
        with writing(part):
            file.write(data)
            file.flush()
        have += len(data)
        bar.update(have)
    return have


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part.parent} has {mebibytes(free)} left, {part.stem} needs {mebibytes(needed)}: "
            "make room, or set FVCORE_CACHE to a folder on another disk"
        )
