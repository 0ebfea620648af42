"""Downloads from a web server that is slow, cuts connections, and serves what it should not."""

import hashlib
import io
import resource
import subprocess
import sys
import threading
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e3va import UserError
from e3va.model_zoo import download as downloads
from e3va.model_zoo import local_path
from e3va.model_zoo.download import Expected, Unreachable, download

DATA = bytes(range(256)) * 400  # 100 kB


def exactly(data: bytes) -> Expected:
    return Expected(len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.pth.part"


@pytest.fixture
def url(web):
    web.files["file.pth"] = DATA
    return f"{web.address}/file.pth"


def left(part) -> list[str]:
    return sorted(path.name for path in part.parent.iterdir() if path.is_file())


def test_a_slow_server_and_unknown_size(web, url, part, make):
    web.faults = [make.fault(slow=0.001), make.fault(stated=-1)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA and left(part) == [part.name]
    part.unlink()
    download(url, part, Expected())  # nothing known beforehand, and no Content-Length
    assert part.read_bytes() == DATA


def test_a_cut_connection_goes_on_where_it_was_cut(web, url, part, make, capsys):
    web.faults = [make.fault(cut=30_000), make.fault(cut=70_000)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert [r.range for r in web.requests] == [None, "bytes=30000-", "bytes=70000-"]
    assert sum(r.sent for r in web.requests) == len(DATA)  # no byte was sent twice
    said = capsys.readouterr().err
    assert "cut after 30000 of 102400 bytes; trying again" in said
    assert said.count("Downloading") == 1 and len(said.splitlines()) == 3


def test_a_terminal_sees_a_bar(web, url, part, make, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    web.faults = [make.fault(cut=30_000)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    shown = terminal.getvalue()
    assert "0.00/100k" in shown and "29.3k/100k" in shown  # KiB of KiB
    assert "cut after 30000" in shown and shown.count("Downloading") == 1


def test_a_later_call_goes_on_too(web, url, part, make, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    monkeypatch.setattr(downloads, "ALL_TRIES", 1)
    web.faults = [make.fault(cut=30_000)]
    with pytest.raises(Unreachable, match="cut after 30000"):
        download(url, part, exactly(DATA))
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA and web.requests[-1].range == "bytes=30000-"


def test_a_complete_part_needs_no_request(web, url, part, make, monkeypatch):
    download(url, part, exactly(DATA))
    downloads._State(part).write(url=url, etag="", total=len(DATA))  # as if killed before the check
    web.requests.clear()
    download(url, part, exactly(DATA))
    assert web.requests == []


@given(cuts=st.lists(st.integers(1, len(DATA) - 1), min_size=1, max_size=4, unique=True))
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_cuts_give_the_same_bytes(web, url, part, make, cuts):
    part.unlink(missing_ok=True)
    web.requests.clear()
    web.faults = [make.fault(cut=at) for at in sorted(cuts)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert [r.range for r in web.requests] == [None, *(f"bytes={at}-" for at in sorted(cuts))]


def test_a_server_without_ranges_starts_anew(web, url, part, make):
    web.faults = [make.fault(cut=30_000), make.fault(ranges=False)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert [(r.range, r.status) for r in web.requests] == [(None, 200), ("bytes=30000-", 200)]


def test_a_server_that_never_gets_further_is_given_up(web, url, part, make):
    web.faults = [make.fault(cut=30_000, ranges=False)] * 20
    with pytest.raises(Unreachable, match="cut after 30000"):
        download(url, part, exactly(DATA))
    assert len(web.requests) == 1 + downloads.TRIES


def test_a_range_that_cannot_be_is_asked_for_anew(web, url, part):
    """What is there is longer than what the server has now."""
    part.write_bytes(DATA * 2)
    downloads._State(part).write(url=url, etag="", total=3 * len(DATA))
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert [r.status for r in web.requests] == [416, 200]


@pytest.mark.parametrize("etag", [None, '"same for all"', ""])
def test_a_file_that_changes_in_between(web, url, part, make, etag):
    """With an ETag, with one that lies, and without; also of another size."""
    other = bytes(len(DATA))
    web.faults = [make.fault(data=other, cut=30_000, etag=etag), make.fault(etag=etag)]
    web.faults += [make.fault(etag=etag)] * 2
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    part.unlink()
    web.faults = [make.fault(data=other * 2, cut=30_000, stated=-1, etag=etag)]
    web.faults += [make.fault(etag=etag)] * 2
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA


def test_a_rest_of_another_total_is_not_joined(web, url, part, make):
    """Where no sha256 is known, ETag and total alone tell that the file is another one now."""
    for note, etag in (
        ({"etag": '"old"', "total": len(DATA) + 1}, '"old"'),
        ({"etag": '"old"', "total": len(DATA)}, '"new"'),
    ):
        part.write_bytes(bytes(30_000))
        downloads._State(part).write(url=url, **note)
        web.faults = [make.fault(etag=etag, heeds_if_range=False)]
        download(url, part, Expected())
        assert part.read_bytes() == DATA
        assert [r.range for r in web.requests] == ["bytes=30000-", None]
        web.requests.clear()


def test_a_part_from_another_address_is_not_gone_on_with(web, url, part):
    part.write_bytes(bytes(30_000))
    downloads._State(part).write(url="http://elsewhere/file.pth", etag="", total=len(DATA))
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA and web.requests[0].range is None


def test_a_wrong_file_leaves_nothing(web, url, part, make):
    wrong = DATA[::-1]
    web.faults = [make.fault(data=wrong)]
    with pytest.raises(UserError) as caught:
        download(url, part, exactly(DATA))
    text = str(caught.value)
    assert "\n" not in text and url in text
    assert hashlib.sha256(wrong).hexdigest() in text and hashlib.sha256(DATA).hexdigest() in text
    assert left(part) == []
    download(url, part, exactly(DATA))  # the server has been put right
    assert part.read_bytes() == DATA


def test_a_wrong_beginning_is_downloaded_once_more(web, url, part, capsys):
    part.write_bytes(bytes(30_000))
    downloads._State(part).write(url=url, etag="", total=len(DATA))
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert [r.range for r in web.requests] == ["bytes=30000-", None]
    assert "from scratch" in capsys.readouterr().err


def test_first_digits_of_the_sha256(web, url, part):
    digest = hashlib.sha256(DATA).hexdigest()
    download(url, part, Expected(sha256_prefix=digest[:8]))
    part.unlink()
    with pytest.raises(UserError, match=f"{digest} instead of one that begins with 00000000"):
        download(url, part, Expected(sha256_prefix="00000000"))


def test_too_long_is_stopped(web, url, part, make):
    """Said by Content-Length it is refused unread; else as soon as one byte too many arrives."""
    for stated in (None, -1):
        web.requests.clear()
        web.faults = [make.fault(data=DATA + b"!" if stated is None else DATA, stated=stated)]
        web.faults[0].endless = stated == -1
        with pytest.raises(UserError, match="nothing of it is kept"):
            download(url, part, exactly(DATA))
        assert left(part) == [] and len(web.requests) == 1
    # The server would have sent 64 MiB; what it got rid of lay in the sockets' buffers.
    assert web.requests[0].sent < 32 << 20


def test_unknown_sizes_have_a_cap(web, url, part, make, monkeypatch):
    web.faults = [make.fault(stated=3 << 30)]
    with pytest.raises(UserError, match="3221225472 bytes instead of at most 2147483648"):
        download(url, part, Expected())
    monkeypatch.setattr(downloads, "SIZE_CAP", 5000)
    web.faults = [make.fault(stated=-1, endless=True)]
    with pytest.raises(UserError, match="longer than the 5000 bytes"):
        download(url, part, Expected())
    assert left(part) == []


def test_shorter_than_stated(web, url, part, make):
    """By the table: refused. By the server's own word: the rest is asked for until it gives up."""
    web.faults = [make.fault(data=DATA[:-1])]
    with pytest.raises(UserError, match="102399 bytes instead of 102400"):
        download(url, part, exactly(DATA))
    web.requests.clear()
    web.faults = [make.fault(data=DATA[:50_000], stated=-1, etag="")] * 20
    with pytest.raises(Unreachable, match="no more than what has arrived"):
        download(url, part, exactly(DATA))


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_answer_without_a_file(web, url, part, make, status):
    web.faults = [make.fault(status=status)]
    with pytest.raises(Unreachable, match=f"answers {status}"):
        download(url, part, exactly(DATA))
    assert len(web.requests) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_fault_of_the_server(web, url, part, make, status):
    web.faults = [make.fault(status=status), make.fault(status=status)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA and len(web.requests) == 3
    web.faults = [make.fault(status=status)] * 20
    part.unlink()
    with pytest.raises(Unreachable, match=f"answers {status}"):
        download(url, part, exactly(DATA))


def test_a_stalled_server(web, url, part, make, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.02)
    web.faults = [make.fault(slow=0.05)]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    assert int(web.requests[1].range.strip("bytes=-")) % 4096 == 0  # what came in chunks is kept


def test_redirects(web, url, part, make, start_web):
    other = start_web()
    other.files["elsewhere"] = DATA
    web.faults = [make.fault(status=302, location=f"{other.address}/elsewhere")]
    download(url, part, exactly(DATA))
    assert part.read_bytes() == DATA
    part.unlink()
    for to in ("file:///etc/passwd", "ftp://127.0.0.1/file", "data:,x", "gopher://127.0.0.1/"):
        web.faults = [make.fault(status=302, location=to)]
        with pytest.raises(UserError, match="redirects to .* is not followed"):
            download(url, part, exactly(DATA))
    web.faults = [make.fault(status=302, location=url)] * 30
    with pytest.raises(UserError, match="redirects"):
        download(url, part, exactly(DATA))
    assert left(part) == []


def test_a_redirect_from_https_to_http():
    handler, request = downloads._Redirects(), urllib.request.Request("https://a.org/file")
    with pytest.raises(UserError, match="not followed"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://a.org/file")
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://b.org/x") is not None


@pytest.mark.parametrize("wrong", ["file:///etc/passwd", "ftp://a.org/x", "/etc/passwd", "http://"])
def test_other_addresses_than_http(part, wrong):
    with pytest.raises(UserError, match="expected an http or https address"):
        download(wrong, part, Expected())


def test_nobody_listens(web, url, part):
    web.stop()
    with pytest.raises(Unreachable, match="refused"):
        download(url, part, exactly(DATA))


def test_no_room_and_no_permission(web, url, part, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"part cannot be written \(File too large\)"):
            download(url, part, exactly(DATA))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    download(url, part, exactly(DATA))  # goes on with what was written
    assert part.read_bytes() == DATA and web.requests[-1].range == "bytes=20000-"
    with pytest.raises(UserError, match="cannot be written"):
        download(url, tmp_path / "missing" / "file.part", exactly(DATA))


def test_a_part_is_not_written_through_a_link(web, url, part, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    part.symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written"):
        download(url, part, exactly(DATA))
    assert victim.read_bytes() == b"precious"


def test_threads_and_processes_at_once_download_once(web, small, make, cache):
    """Eight threads as eight ranks; then two processes of their own."""
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
    assert len(web.asked_for("trunks/small.pth")) == 1

    paths[0].unlink()
    web.requests.clear()
    code = "from e3va.model_zoo import local_path; print(local_path('e3va://small'))"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in running]
    assert said == [str(paths[0])] * 2 and paths[0].read_bytes() == small
    assert len(web.asked_for("trunks/small.pth")) == 1
