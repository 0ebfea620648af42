"""A web server on loopback that can be faulty, an empty cache, and small files of a zoo."""

import hashlib
import io
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pooch.core
import pytest
import torch


@dataclass
class Fault:
    """One faulty answer.

    Attributes:
        status: status in place of 200.
        location: target of a redirect.
        cut: number of bytes of the body after which the connection ends.
        data: body in place of the file's.
        stated: Content-Length in place of the true one; -1 for none.
        endless: whether bytes without end follow the body.
        slow: seconds after each chunk.
    """

    status: int = 200
    location: str = ""
    cut: int | None = None
    data: bytes | None = None
    stated: int | None = None
    endless: bool = False
    slow: float = 0.0


@dataclass
class Request:
    """A client's request, and the number of bytes sent to it."""

    path: str
    status: int = 0
    sent: int = 0


@dataclass
class WebServer:
    """Serves ``files`` (path below the root → bytes); the next answers have the next ``faults``."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def requests_for(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]


class _Answers(BaseHTTPRequestHandler):
    state: WebServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.path.lstrip("/")
        fault = self.state.faults.pop(0) if self.state.faults else Fault()
        request = Request(path)
        self.state.requests.append(request)
        body = self.state.files.get(path) if fault.data is None else fault.data
        request.status = fault.status if body is not None or fault.location else 404
        if request.status != 200:
            self._say(request.status, {"Location": fault.location, "Content-Length": "0"})
            return
        self._send(request, body, fault)

    def _say(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _send(self, request, body, fault):
        length = len(body) if fault.stated is None else fault.stated
        self._say(request.status, {"Content-Length": str(length) if length >= 0 else ""})
        body = body[: fault.cut]
        try:
            for at in range(0, len(body), 4096):
                self.wfile.write(body[at : at + 4096])
                request.sent += len(body[at : at + 4096])
                time.sleep(fault.slow)
            while fault.endless and request.sent < 64 << 20:
                self.wfile.write(bytes(65536))
                request.sent += 65536
        except OSError:
            pass  # the client closed the connection


def servers(make_state, answers):
    """Yield a function that starts a server with a new state; all are stopped at the end.

    A server's ``state`` gets its ``address``, and ``stop``, which stops it earlier.
    """
    running = []

    def start():
        state = make_state()
        handler = type("Answers", (answers,), {"state": state})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        state.stop = lambda: (server.shutdown(), server.server_close())
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(state)
        return state

    yield start
    for state in running:
        state.stop()


@pytest.fixture
def start_web():
    """Starts web servers, see :func:`servers`."""
    yield from servers(WebServer, _Answers)


@pytest.fixture
def web(start_web):
    return start_web()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The zoo's folder in an empty cache; no mirror, no proxy, no pause before a retry."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("E3VA_ZOO", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    return tmp_path / "cache" / "e3va"


def checkpoint(seed: int = 0, size: int = 40_000) -> bytes:
    """A ``torch.save`` file of one tensor, which is enough of a trunk for a download."""
    file = io.BytesIO()
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    torch.save({"model": {"weight": data}}, file)
    return file.getvalue()


def trunk_row(data: bytes, name: str = "small", **changes) -> dict:
    return {
        "preset": "swin_nano",
        "pretraining": "none",
        "file": f"trunks/{name}.pth",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **changes,
    }


def table_text(trunks: dict | None = None, adapters: dict | None = None) -> bytes:
    return json.dumps({"format": 1, "trunks": trunks or {}, "adapters": adapters or {}}).encode()


@pytest.fixture
def make():
    """The makers of small files and rows."""

    class Make:
        fault, checkpoint, trunk_row = Fault, staticmethod(checkpoint), staticmethod(trunk_row)
        table = staticmethod(table_text)

    return Make


@pytest.fixture
def small(web, make, monkeypatch) -> bytes:
    """A trunk ``small`` on a web mirror; its bytes."""
    data = make.checkpoint()
    web.files["trunks/small.pth"] = data
    web.files["zoo.json"] = make.table({"small": make.trunk_row(data)})
    monkeypatch.setenv("E3VA_ZOO", web.address)
    return data
