"""Downloads from a web server that is slow, cuts connections, or sends wrong files."""

import hashlib
import io
import os
import resource
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e3va import UserError
from e3va.model_zoo import download as downloads
from e3va.model_zoo import local_path
from e3va.model_zoo.download import RETRIES, Unreachable, download, read_small
from e3va.model_zoo.rows import ZooFile

DATA = bytes(range(256)) * 400  # 100 kB
SHA256 = hashlib.sha256(DATA).hexdigest()
FILE = ZooFile("file.pth", len(DATA), SHA256)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloaded" / "file.pth"


@pytest.fixture
def url(web):
    web.files["file.pth"] = DATA
    return f"{web.address}/file.pth"


def get(url, path) -> bytes:
    download(url, path, len(DATA), FILE.problem)
    return path.read_bytes()


def nothing_left(path) -> bool:
    return not path.parent.is_dir() or not any(path.parent.iterdir())


def test_a_slow_server_and_unknown_size(web, url, path, make):
    web.faults = [make.fault(slow=0.001, stated=-1)]
    assert get(url, path) == DATA and list(path.parent.iterdir()) == [path]
    path.unlink()
    download(url, path, 1 << 20, ZooFile("file.pth").problem)  # no size and no sha256
    assert path.read_bytes() == DATA


def test_a_terminal_shows_a_bar(url, path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(downloads, "_CHUNK", 4096)
    assert get(url, path) == DATA
    shown = sys.stderr.getvalue()
    assert "file.pth:" in shown and "/100k" in shown  # KiB
    assert "100%" in shown or "0%" in shown


@given(cuts=st.lists(st.integers(0, len(DATA) - 1), min_size=1, max_size=RETRIES))
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_cut_connection_is_tried_again(web, url, path, make, cuts):
    path.unlink(missing_ok=True)
    web.requests.clear()
    web.faults = [make.fault(cut=at) for at in cuts]
    assert get(url, path) == DATA
    assert len(web.requests) == len(cuts) + 1 and list(path.parent.iterdir()) == [path]


def test_a_connection_that_is_always_cut(web, url, path, make):
    web.faults = [make.fault(cut=30_000)] * 20
    with pytest.raises(Unreachable, match="30000 bytes read, 72400 more"):
        get(url, path)
    assert len(web.requests) == 1 + RETRIES and nothing_left(path)


def test_a_wrong_file_is_refused_at_once(web, url, path, make):
    wrong = DATA[::-1]
    web.faults = [make.fault(data=wrong)]
    with pytest.raises(UserError) as caught:
        get(url, path)
    text = str(caught.value)
    assert "\n" not in text and url in text
    assert hashlib.sha256(wrong).hexdigest() in text and SHA256 in text
    assert nothing_left(path) and len(web.requests) == 1
    assert get(url, path) == DATA  # the server has the right file now


@pytest.mark.parametrize("stated", [None, -1])
def test_a_file_that_is_too_long_is_stopped(web, url, path, make, stated):
    web.faults = [make.fault(data=DATA + b"!", stated=stated, endless=stated == -1)]
    with pytest.raises(UserError, match=f"{len(DATA)} bytes"):
        get(url, path)
    assert nothing_left(path) and len(web.requests) == 1
    # The server would have sent 64 MiB; what it has sent was in the sockets' buffers.
    assert web.requests[0].sent < 32 << 20


@pytest.mark.parametrize("stated", [None, -1])
def test_a_file_that_is_too_short(web, url, path, make, stated):
    web.faults = [make.fault(data=DATA[:-1], stated=stated)] * 20
    with pytest.raises(UserError, match=f"{len(DATA) - 1} bytes instead of {len(DATA)}"):
        get(url, path)
    assert nothing_left(path) and len(web.requests) == 1


@pytest.mark.parametrize("status", [403, 404, 410, 500, 503, 429])
def test_an_answer_without_a_file(web, url, path, make, status):
    web.faults = [make.fault(status=status)]
    with pytest.raises(Unreachable, match=f"^{status} "):
        get(url, path)
    assert nothing_left(path) and len(web.requests) == 1
    assert get(url, path) == DATA


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_the_mode_is_that_of_the_users_other_files(url, path, umask):
    before = os.umask(umask)
    try:
        get(url, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_stalled_server(web, url, path, make, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    web.faults = [make.fault(slow=0.5)]
    assert get(url, path) == DATA and len(web.requests) == 2


def test_redirects(web, url, path, make, start_web):
    other = start_web()
    other.files["elsewhere"] = DATA
    web.faults = [make.fault(status=302, location=f"{other.address}/elsewhere")]
    assert get(url, path) == DATA
    path.unlink()
    for to in ("file:///etc/passwd", "ftp://127.0.0.1/file", "data:,x", "gopher://127.0.0.1/"):
        web.faults = [make.fault(status=302, location=to)]
        with pytest.raises(UserError, match=to):
            get(url, path)
        web.faults = [make.fault(status=302, location=to)]
        with pytest.raises(UserError, match=to):
            read_small(url, 1 << 20)
    web.faults = [make.fault(status=302, location=url)] * 200
    with pytest.raises(Unreachable, match="30 redirects"):
        get(url, path)
    assert nothing_left(path)


@pytest.mark.parametrize(
    ("to", "allowed"),
    [("https://b.org/x", True), ("/x", True), ("http://a.org/x", False), ("//b.org/x", True)],
)
def test_https_does_not_fall_back_to_http(to, allowed):
    answer = SimpleNamespace(is_redirect=True, url="https://a.org/file", headers={"location": to})
    if allowed:
        downloads._check_redirect(answer, timeout=1)
    else:
        with pytest.raises(UserError, match=to):
            downloads._check_redirect(answer, timeout=1)


def test_no_server_listens(web, url, path):
    web.stop()
    with pytest.raises(Unreachable, match="refused"):
        get(url, path)
    assert nothing_left(path)


def test_a_full_disk_and_missing_permission(url, path, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"file\.pth cannot be written \(File too large\)"):
            get(url, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert nothing_left(path) and get(url, path) == DATA
    (tmp_path / "a file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        get(url, tmp_path / "a file" / "file.pth")


def test_a_link_is_not_followed(url, path, tmp_path):
    """The downloaded file replaces a dangling link."""
    path.parent.mkdir()
    path.symlink_to(tmp_path / "victim")
    assert get(url, path) == DATA
    assert not path.is_symlink() and not (tmp_path / "victim").exists()


def test_threads_and_processes_download_once(web, small, make, cache):
    """First eight threads, then two processes."""
    paths, errors = [], []

    def ask():
        try:
            paths.append(local_path("e3va://small"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(paths)) == 1 and len(paths) == 8
    assert paths[0].read_bytes() == small
    assert len(web.requests_for("trunks/small.pth")) == 1

    paths[0].unlink()
    web.requests.clear()
    code = "from e3va.model_zoo import local_path; print(local_path('e3va://small'))"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate()[0].strip() for process in running]
    assert printed == [str(paths[0])] * 2 and paths[0].read_bytes() == small
    assert len(web.requests_for("trunks/small.pth")) == 1
