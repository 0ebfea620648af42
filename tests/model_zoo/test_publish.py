"""From a finished training to a zoo, and from the zoo to the same model again."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from e3va import E3VABackbone, UserError
from e3va.adapter_files.files import (
    CONFIG_FILE,
    MODEL_FILE,
    load_adapter,
    read_adapter,
    save_adapter,
)
from e3va.cli.main import main
from e3va.model_zoo import list_adapters, list_trunks, local_path
from e3va.model_zoo.publish import publish
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.loading import load_trunk

ABOUT = {"classes": ("cat", "dog"), "trained_on": "drawn", "scores": {"AP": 31.5}, "steps": 5}


class Model(nn.Module):
    """A backbone and a head; the trunk's weights are the file's."""

    def __init__(self, trunk_file: Path):
        super().__init__()
        self.backbone = E3VABackbone("swin_nano", highway={"recipe": "e3va_chain", "rank": 2})
        self.head = nn.Linear(4, 2)
        state = model_state(load_file(trunk_file), "trunk")
        load_trunk(self.backbone.trunk, state, trunk_file.name)


@pytest.fixture
def trunk_file(tmp_path) -> Path:
    file = tmp_path / "nano_trunk.pth"
    torch.save({"model": E3VABackbone("swin_nano").trunk.state_dict()}, file)
    return file


@pytest.fixture
def trained(trunk_file) -> nn.Module:
    model = Model(trunk_file)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


@pytest.fixture
def output(trained, tmp_path) -> Path:
    save_adapter(trained, tmp_path / "output", **ABOUT)
    return tmp_path / "output"


@pytest.fixture
def zoo(output, trunk_file, tmp_path) -> Path:
    publish(output, "things", tmp_path / "zoo", trunk=str(trunk_file))
    return tmp_path / "zoo"


def check_use(trained: nn.Module, trunk_file: Path) -> Path:
    """Check that the files and the merged checkpoint hold the weights of the trained model."""
    want = trained.state_dict()
    folder = local_path("e3va://things")
    assert sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".json"))[
        :2
    ] == sorted((CONFIG_FILE, MODEL_FILE))
    model = Model(trunk_file)
    load_adapter(model, folder)
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    path = local_path("e3va://adapters/things/model_final.pth")
    whole = torch.load(path, weights_only=True)
    assert whole["model"].keys() == want.keys() and "e3va" in whole
    assert all(torch.equal(value, want[key]) for key, value in whole["model"].items())
    return path


def test_through_a_folder(zoo, trained, trunk_file, cache, monkeypatch):
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    assert local_path("e3va://things") == zoo / "adapters" / "things"
    path = check_use(trained, trunk_file)
    assert path == cache / "adapters" / "things" / "model_final.pth"
    row = list_adapters()["things"]
    assert (row.trunk, row.classes, row.scores) == ("nano_trunk", ("cat", "dog"), {"AP": 31.5})
    assert row.trained_on == "drawn" and list_trunks()["nano_trunk"].preset == "swin_nano"


def test_through_a_web_server(zoo, trained, trunk_file, cache, monkeypatch):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=zoo)
    handler.func.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("E3VA_ZOO", f"http://127.0.0.1:{server.server_address[1]}")
        check_use(trained, trunk_file)
        server.shutdown()
    check_use(trained, trunk_file)  # offline
    assert (cache / "trunks" / "nano_trunk.pth").is_file()


def test_the_merged_checkpoint_is_rebuilt_when_its_parts_change(
    zoo, trained, output, trunk_file, monkeypatch, capsys
):
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    path = check_use(trained, trunk_file)
    first = path.stat().st_mtime_ns
    check_use(trained, trunk_file)
    assert path.stat().st_mtime_ns == first  # not written again
    for damage in (b"", path.read_bytes()[:-1], bytes(path.stat().st_size)):
        path.write_bytes(damage)
        check_use(trained, trunk_file)
    with torch.no_grad():
        trained.head.weight.zero_()
    save_adapter(trained, output, **ABOUT)
    publish(output, "things", zoo, replace=True)
    check_use(trained, trunk_file)
    capsys.readouterr()
    check_use(trained, trunk_file)
    assert capsys.readouterr().err == ""


def test_an_altered_adapter_is_refused(zoo, monkeypatch):
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    for name in (MODEL_FILE, CONFIG_FILE):
        file = zoo / "adapters" / "things" / name
        before = file.read_bytes()
        file.write_bytes(before.replace(b"cat", b"cow"))
        for address in ("e3va://things", "e3va://adapters/things/model_final.pth"):
            with pytest.raises(UserError, match=f"{name} has sha256"):
                local_path(address)
        file.write_bytes(before)


def test_another_trunk_is_refused(zoo, output, trained, tmp_path, monkeypatch):
    """Publishing and merging both compare fingerprints."""
    other = tmp_path / "other.pth"
    torch.save({"model": E3VABackbone("swin_nano").trunk.state_dict()}, other)
    before = (zoo / "zoo.json").read_bytes()
    with pytest.raises(UserError, match="fingerprint"):
        publish(output, "more", zoo, trunk=str(other))
    assert not (zoo / "adapters" / "more").exists() and not (zoo / "trunks" / "other.pth").exists()
    assert (zoo / "zoo.json").read_bytes() == before
    publish(output, "more", zoo)  # by its file's name, from the zoo's own rows
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    data = json.loads(before)
    data["adapters"]["things"]["trunk"] = "swin_mini"
    (zoo / "zoo.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="swin_mini"):
        local_path("e3va://adapters/things/model_final.pth")


def test_names_that_are_taken(zoo, output):
    before = {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="--name things.*--replace"):
        publish(output, "things", zoo)
    with pytest.raises(UserError, match="--name \\w+: a trunk"):
        publish(output, "nano_trunk", zoo, replace=True)
    with pytest.raises(UserError, match="--name \\w+: a trunk"):
        publish(output, "swin_mini", zoo, replace=True)
    for name in ("../x", "a/b", "", "..", "trunks", "a b"):
        with pytest.raises(UserError, match="--name"):
            publish(output, name, zoo)
    assert {p: p.read_bytes() for p in zoo.rglob("*") if p.is_file()} == before


def test_trainings_that_cannot_be_published(output, trained, tmp_path, trunk_file):
    to = tmp_path / "empty"
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "training.pth").write_bytes(b"")
    with pytest.raises(UserError, match=f"no {MODEL_FILE} and no {CONFIG_FILE}"):
        publish(unfinished, "things", to)
    with pytest.raises(UserError, match="not there"):
        publish(tmp_path / "not there", "things", to)
    shutil.copy(output / MODEL_FILE, unfinished)
    with pytest.raises(UserError, match=f"no {CONFIG_FILE}: expected"):
        publish(unfinished, "things", to)
    with pytest.raises(UserError, match="'nano_trunk.pth' .*--trunk"):
        publish(output, "things", to)
    with pytest.raises(UserError, match="--url"):
        publish(output, "things", to, url="ftp://a.org", trunk=str(trunk_file))
    data = bytearray((output / MODEL_FILE).read_bytes())
    data[-1] ^= 1
    (output / MODEL_FILE).write_bytes(data)
    with pytest.raises(UserError, match="altered"):
        publish(output, "things", to, trunk=str(trunk_file))
    assert not to.exists() or [p.name for p in to.rglob("*")] in ([], ["zoo.json.lock"])


def test_publishing_into_an_unwritable_folder(output, tmp_path, trunk_file):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        publish(output, "things", tmp_path / "file", trunk=str(trunk_file))


def test_public_addresses_in_the_rows(output, tmp_path, trunk_file):
    zoo = tmp_path / "zoo"
    row = publish(output, "things", zoo, url="https://a.org/zoo/", trunk=str(trunk_file))
    assert row["url"] == "https://a.org/zoo/adapters/things"
    data = json.loads((zoo / "zoo.json").read_text())
    assert data["trunks"]["nano_trunk"]["url"] == "https://a.org/zoo/trunks/nano_trunk.pth"


def test_the_commands(output, trunk_file, tmp_path, monkeypatch, capsys):
    zoo = tmp_path / "zoo"
    arguments = ["zoo", "publish", str(output), "--name", "things", "--to", str(zoo)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the trunk") and len(error.splitlines()) == 1
    assert main([*arguments, "--trunk", str(trunk_file)]) == 0
    assert f"E3VA_ZOO={zoo}: e3va://things" in capsys.readouterr().out
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    assert main(["zoo", "list"]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if line.startswith("  things ")]
    assert len(lines) == 1 and "AP 31.5" in lines[0] and lines[0].endswith("in the mirror")
    assert "things: trained on drawn" in text and "swin_large_patch4_window12_384_22k" in text
    assert main(["zoo", "get", "things"]) == 0
    assert capsys.readouterr().out.strip() == str(zoo / "adapters" / "things")
    assert main(["zoo", "get", "e3va://things/model_final.pth"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()
    assert main(["zoo", "get", "thing"]) == 1
    assert capsys.readouterr().err.startswith("error: the zoo has no 'thing': nearest: things")
    with pytest.raises(SystemExit, match="2"):
        main(["zoo"])


def test_two_adapters_are_independent(zoo, output, trained, monkeypatch, tmp_path):
    with torch.no_grad():
        trained.head.bias.fill_(7)
    save_adapter(trained, tmp_path / "second", **ABOUT)
    publish(tmp_path / "second", "second", zoo)
    monkeypatch.setenv("E3VA_ZOO", str(zoo))
    one, two = (read_adapter(local_path(f"e3va://{name}"))[0] for name in ("things", "second"))
    assert torch.all(two["head.bias"] == 7) and not torch.equal(one["head.bias"], two["head.bias"])
