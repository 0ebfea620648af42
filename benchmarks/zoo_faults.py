"""Show what a user sees when a zoo's server is slow, cuts connections, sends wrong files, is gone.

    python benchmarks/zoo_faults.py [--output benchmarks/results/zoo]

The script publishes a small adapter into a folder, serves this folder on loopback with faults, and
downloads the adapter from there. It prints each command with its output and exit status, and what
the server sent. "." is the temporary folder of the run.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from torch import nn

from e3va import E3VABackbone
from e3va.adapter_files.files import MODEL_FILE, save_adapter
from e3va.model_zoo import local_path
from e3va.utils.atomic import atomic_open
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.loading import load_trunk

SLOW = {"pause": 0.005}
# Description, faults of the next answers with the weights, the user's cache folder.
CASES = (
    ("slow, and cut twice", [SLOW | {"cut": 30_000}, SLOW | {"cut": 60_000}, SLOW], "cache"),
    ("cached: checked, not downloaded", [], "cache"),
    ("one bit of the cached file is flipped", [], "cache"),
    ("a wrong file of the right size", [{"wrong": True}], "second"),
    ("then the right one", [], "second"),
    ("a file longer than in the zoo's table", [{"longer": True}], "third"),
    ("the server is gone, the files are in the cache", [], "cache"),
    ("the server is gone, the files are not here", [], "third"),
)
MISUSE = ("e3va://adapters/../../../etc/passwd", "swin_tiny_patch4_window7_225")


class Handler(BaseHTTPRequestHandler):
    """Serves the folder ``root``; the next answers with an adapter's weights have ``faults``."""

    root: Path
    faults: list[dict] = []
    sent: list[str] = []

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        fault = self.faults.pop(0) if self.faults and path.name == MODEL_FILE else {}
        body = path.read_bytes() * (500 if "longer" in fault else 1)
        body = bytes(len(body)) if "wrong" in fault else body
        self.send_response(200)
        if "longer" not in fault:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = self.send(body[: fault.get("cut")], fault.get("pause", 0))
        self.sent.append(f"    server: {self.path}: {sent} bytes")

    def send(self, body: bytes, pause: float, chunk: int = 16384) -> int:
        """Return the number of bytes that were sent before the client closed the connection."""
        for at in range(0, len(body), chunk):
            try:
                self.wfile.write(body[at : at + chunk])
            except OSError:
                return at
            time.sleep(pause)
        return len(body)


class User:
    """A user who types commands in ``folder``; ``lines`` holds all that was printed."""

    def __init__(self, folder: Path):
        self.folder, self.lines = folder, []

    def see(self, *lines: str) -> None:
        for line in lines:
            line = line.replace(str(self.folder), ".")
            self.lines.append(re.sub(r"(127\.0\.0\.1):\d+", r"\1:PORT", line))
            print(self.lines[-1], flush=True)

    def zoo(self, command: str, mirror: str = "", cache: str = "cache") -> None:
        self.see(f"$ {f'E3VA_ZOO={mirror} ' if mirror else ''}python -m e3va zoo {command}")
        own = {"E3VA_ZOO": mirror, "FVCORE_CACHE": str(self.folder / cache)}
        done = subprocess.run(
            [sys.executable, "-m", "e3va", "zoo", *command.split()],
            cwd=self.folder,
            env={**os.environ, **own, "no_proxy": "127.0.0.1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.see(*(f"    {line}" for line in done.stdout.splitlines()))
        self.see(f"    (exit {done.returncode})")


def train(folder: Path) -> None:
    """Write the output of a finished training over the trunk that comes with the library."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": E3VABackbone("swin_mini"), "head": nn.Linear(384, 4)})
    file = str(local_path("e3va://swin_mini"))
    load_trunk(model["backbone"].trunk, model_state(load_file(file), file), "swin_mini")
    save_adapter(model, folder, classes=("disc", "square"), trained_on="nothing, for show")


def publish(user: User) -> None:
    """Publish a finished training and try to publish an unfinished one."""
    train(user.folder / "output")
    (user.folder / "unfinished").mkdir()
    user.see("", "## A finished training is published into a folder, which is a zoo at once", "")
    for name, output in (("shapes", "output"), ("shapes", "output"), ("other", "unfinished")):
        user.zoo(f"publish {output} --name {name} --to zoo")
    for name in ("shapes", "shapes/model_final.pth"):
        user.zoo(f"get {name}", str(user.folder / "zoo"))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def serve(user: User) -> None:
    """Download from a web server with the faults of ``CASES``."""
    Handler.root = user.folder / "zoo"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    user.see("", "## The same folder behind a web server on loopback", "")
    for case, faults, cache in CASES:
        if "bit" in case:
            flip_a_bit(user.folder / cache / "e3va/adapters/shapes" / MODEL_FILE)
        if "gone" in case:
            server.shutdown()
            server.server_close()
        Handler.faults, Handler.sent = [*faults], []
        user.see(f"-- {case}")
        user.zoo("get shapes", f"http://127.0.0.1:{server.server_port}", cache)
        user.see(*Handler.sent)


def misuse(user: User) -> None:
    """Try hostile and unknown names, and a hostile table."""
    user.see("", "## What is refused", "")
    for name in MISUSE:
        user.zoo(f"get {name}")
    row = {"preset": "swin_t", "pretraining": "", "file": "trunks/../../../.bashrc.pth"}
    (user.folder / "evil").mkdir()
    table = json.dumps({"format": 1, "trunks": {"x": row}})
    (user.folder / "evil/zoo.json").write_text(table)
    user.zoo("get x", str(user.folder / "evil"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for a copy of what is printed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        user = User(Path(folder).resolve())
        for part in (publish, serve, misuse):
            part(user)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        # Markdown: all lines but headings are code.
        text = [line if line[:2] in ("##", "") else f"    {line}" for line in user.lines]
        with atomic_open(args.output / "zoo_faults.md", "w") as file:
            file.write("Printed by `python benchmarks/zoo_faults.py`; `.` is a temporary folder.\n")
            file.write("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
