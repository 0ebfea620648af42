"""A small server of the hub's interface on loopback, and an empty cache of huggingface_hub."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import save
from torch import nn

from e3va import E3VABackbone
from e3va.adapter_files.files import save_adapter

from ..conftest import servers

constants = pytest.importorskip("huggingface_hub.constants")
TOKEN = "hf_secretsecretsecret"


@dataclass
class Repo:
    """Commits of a repository: the files of each by its 40 digits, the newest last."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: bool = False
    read_only: bool = False

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha

    def at(self, revision: str) -> str | None:
        return (
            list(self.commits)[-1]
            if revision == "main"
            else {s: s for s in self.commits}.get(revision)
        )


@dataclass
class HubServer:
    """The state of the server.

    Attributes:
        repos: repositories by USER/NAME.
        cuts: numbers of bytes after which the next downloads of a file end.
        status: status of all answers in place of the right one.
        requests: all requests: method, path, range, authorization.
        uploads: files that were uploaded before their commit, by their SHA-256.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    status: int = 0
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    address: str = ""

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """Commit files to a repository, which is created; return the commit."""
        return self.repos.setdefault(name, Repo()).commit(files)

    def gets(self, file: str) -> list[str]:
        """The ranges of the downloads of a file."""
        return [
            r for method, path, r, _ in self.requests if method == "GET" and path.endswith(file)
        ]


class _Answers(BaseHTTPRequestHandler):
    state: HubServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(self._read)

    do_HEAD = do_GET

    def do_POST(self):
        self._answer(self._write)

    do_PUT = do_POST

    def _answer(self, work):
        self.route = unquote(urlsplit(self.path).path)
        headers = [self.headers.get(name) or "" for name in ("Range", "Authorization")]
        self.state.requests.append((self.command, self.route, *headers))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        work() if not self.state.status else self._say(self.state.status)

    def _say(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            cut = self.state.cuts.pop(0) if self.state.cuts and "ETag" in headers else None
            self.wfile.write(body[:cut])

    def _repo(self, name: str, revision: str = "main") -> tuple[Repo, str] | None:
        """The repository and the commit of a revision; None after an answer with an error."""
        repo, known = self.state.repos.get(name), TOKEN in (self.headers.get("Authorization") or "")
        if repo is None or (repo.private and not known):
            self._say(404 if known else 401, X_Error_Code="RepoNotFound")
        elif repo.commits and not repo.at(revision):
            self._say(404, X_Error_Code="RevisionNotFound")
        else:
            return repo, repo.at(revision)
        return None

    def _read(self):
        if found := re.fullmatch(
            r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", self.route
        ):
            name, what, revision = found.groups()
            if repo := self._repo(name, revision or "main"):
                files = repo[0].commits.get(repo[1], {})
                entries = [_entry(path, data) for path, data in files.items()]
                siblings = [{"rfilename": path} for path in files]
                info = {"id": name, "sha": repo[1], "siblings": siblings}
                self._say(200, entries if what == "tree" else info)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
            name, revision, path = found.groups()
            if repo := self._repo(name, revision):
                self._send(repo[0].commits[repo[1]].get(path), repo[1])
        else:
            self._say(404)

    def _send(self, data: bytes | None, commit: str):
        if data is None:
            self._say(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        at = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        whole = {"Content_Range": f"bytes {at}-{len(data) - 1}/{len(data)}"} if at else {}
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X_Repo_Commit": commit,
            **whole,
        }
        self._say(206 if at else 200, data[at:], **headers)

    def _write(self):
        if self.route.startswith("/uploads/"):
            self.state.uploads[self.route[9:]] = self.body
            self._say(200)
        elif TOKEN not in (self.headers.get("Authorization") or ""):
            self._say(401)
        elif self.route == "/api/repos/create":
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.state.repos
            self.state.repos.setdefault(name, Repo())
            self._say(409 if known else 200, {"url": f"{self.state.address}/{name}"})
        elif self.route == "/api/validate-yaml":
            wrong = 'license: "unlicensed"' in json.loads(self.body)["content"]
            errors = [{"message": '"license" must be one of [mit]'}] if wrong else []
            self._say(400 if wrong else 200, {"warnings": [], "errors": errors})
        elif "/preupload/" in self.route:
            modes = [
                {**file, "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(self.body)["files"]
            ]
            self._say(200, {"files": modes})
        elif self.route.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(self.body)["objects"]
            for entry in objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.state.address}/uploads/{entry['oid']}"}
                }
            self._say(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.route):
            self._commit(found.group(1), [json.loads(line) for line in self.body.splitlines()])

    def _commit(self, name: str, lines: list[dict]):
        repo = self.state.repos[name]
        if repo.read_only:
            self._say(403)
            return
        files = dict(repo.commits[repo.at("main")]) if repo.commits else {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.uploads[value["oid"]]
        sha = repo.commit(files)
        url = f"{self.state.address}/{name}/commit/{sha}"
        self._say(200, {"success": True, "commitOid": sha, "commitUrl": url})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
    sha = hashlib.sha256(data).hexdigest()
    return entry | (
        {"lfs": {"oid": sha, "size": len(data), "pointerSize": 134}} if _mode(path) == "lfs" else {}
    )


@pytest.fixture
def start_hub():
    """Starts servers, see :func:`servers`."""
    yield from servers(HubServer, _Answers)


@pytest.fixture
def hub(start_hub, tmp_path, monkeypatch) -> HubServer:
    """The server; huggingface_hub of this process uses it, with an empty cache and no token."""
    state = start_hub()
    for name, value in {
        "ENDPOINT": state.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": state.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        assert hasattr(constants, name)
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return state


@pytest.fixture
def command(hub, tmp_path):
    """Runs the ``e3va`` command in a process of its own; its folder is ``tmp_path``."""

    def run(*arguments, **environment) -> subprocess.CompletedProcess:
        own = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, "-m", "e3va", *map(str, arguments)],
            env={**os.environ, **own, **environment},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    return run


class Model(nn.Module):
    """A backbone, whose trunk is the state dict's, and a head."""

    def __init__(self, trunk: dict[str, torch.Tensor], source: str):
        super().__init__()
        from e3va.weights.loading import load_trunk

        self.backbone = E3VABackbone("swin_nano", highway={"recipe": "e3va_chain", "rank": 2})
        self.head = nn.Linear(4, 2)
        load_trunk(self.backbone.trunk, trunk, source)


@pytest.fixture
def trunk() -> dict[str, torch.Tensor]:
    """The weights of a small Swin."""
    torch.manual_seed(0)
    return dict(E3VABackbone("swin_nano").trunk.state_dict())


@pytest.fixture
def weights(trunk) -> bytes:
    """A safetensors file of the trunk."""
    return save(trunk)


@pytest.fixture
def make_adapter(trunk, tmp_path):
    """Writes the folder of an adapter over the trunk; the arguments are name and trunk's source."""

    def make(name: str = "output", source: str = "swin.pth", **about) -> Path:
        about = {"classes": ("cat", "dog"), "trained_on": "drawn", "scores": {"AP": 31.5}, **about}
        save_adapter(Model(trunk, source), tmp_path / name, **about)
        return tmp_path / name

    return make


@pytest.fixture
def token() -> str:
    return TOKEN
