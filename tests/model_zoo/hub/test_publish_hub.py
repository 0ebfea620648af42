"""From a finished training to a repository on the hub, and from there to the same model again."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from e3va import UserError
from e3va.adapter_files.files import CONFIG_FILE, MODEL_FILE, read_adapter, write_adapter
from e3va.cli.main import main
from e3va.model_zoo.hub import fetch
from e3va.model_zoo.publish_hub import publish_on_hub
from e3va.model_zoo.resolve import pinned
from e3va.model_zoo.trunks import find_trunk_of
from e3va.weights.origin import fingerprint

FRUIT = "hf://user/fruit"
MIT = {"license": "mit"}


@pytest.fixture
def swin(hub, weights) -> str:
    """The address of the trunk on the hub, with its commit."""
    hub.add("timm/swin", {"model.safetensors": weights})
    return pinned("hf://timm/swin")


@pytest.fixture
def login(token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A current folder in which no trunk lies."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def check_use(output, trunk, source) -> None:
    """Check that the published adapter and its trunk have the weights of the training."""
    state, config = read_adapter(fetch(FRUIT, force=True)[0])
    before, described = read_adapter(output)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert config.trunk.source == source
    assert replace(config, trunk=described.trunk) == replace(described)
    found, _ = find_trunk_of(config)
    assert fingerprint({key: found[key] for key in trunk}) == config.trunk.fingerprint


def test_over_a_trunk_on_the_hub(hub, login, swin, trunk, make_adapter):
    output = make_adapter(source=swin)
    address = publish_on_hub(output, FRUIT, **MIT)
    assert address == pinned(FRUIT)
    assert hub.repos["user/fruit"].commits.keys() == {address.partition("@")[2]}
    check_use(output, trunk, swin)
    card = hub.repos["user/fruit"].commits[address.partition("@")[2]]["README.md"].decode()
    head, text = card.split("---\n")[1:]
    metadata = dict(line.split(": ", 1) for line in head.splitlines())
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "license": "mit",
        "library_name": "e3va",
        "tags": ["e3va", "swin", "adapter"],
        "base_model": "timm/swin",
    }
    for value in ("# fruit", "cat, dog", "drawn", "AP | 31.5", swin, "mit", FRUIT):
        assert value in text


def test_with_a_file_of_the_trunk(hub, login, trunk, make_adapter, tmp_path):
    """A pickle becomes a safetensors file."""
    output = make_adapter(source="swin.pth")
    torch.save({"model": trunk}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match="swin.pth.*--trunk"):
        publish_on_hub(output, FRUIT, **MIT)
    publish_on_hub(output, FRUIT, trunk=str(tmp_path / "swin.pth"), **MIT)
    (files,) = hub.repos["user/fruit"].commits.values()
    assert files.keys() == {CONFIG_FILE, MODEL_FILE, "README.md", "swin.safetensors"}
    check_use(output, trunk, f"{FRUIT}/swin.safetensors")


def test_with_the_address_of_a_trunk_that_was_a_file(hub, login, swin, trunk, make_adapter):
    output = make_adapter(source="my.pth")
    publish_on_hub(output, FRUIT, trunk="hf://timm/swin", **MIT)
    check_use(output, trunk, swin)


@pytest.mark.parametrize("source", ["demo", "e3va://swin_mini", "swin_mini.safetensors"])
def test_over_a_trunk_of_the_package(hub, login, source, make_adapter, monkeypatch):
    checked = []
    monkeypatch.setattr("e3va.model_zoo.publish_hub.check_trunk", lambda *a: checked.append(a[1]))
    publish_on_hub(make_adapter(source=source), FRUIT, **MIT)
    assert [path.name for path in checked] == ["swin_mini.safetensors"]
    assert read_adapter(fetch(FRUIT)[0])[1].trunk.source in ("demo", "e3va://swin_mini")


def test_another_trunk_is_refused(hub, login, swin, trunk, make_adapter, tmp_path):
    other = {key: value + 1 for key, value in trunk.items()}
    save_file(other, tmp_path / "other.safetensors")
    hub.add("timm/other", {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()})
    for given in ("hf://timm/other", str(tmp_path / "other.safetensors"), "swin_mini"):
        with pytest.raises(UserError, match="fingerprint|holds the Swin"):
            publish_on_hub(make_adapter(source="swin.pth"), FRUIT, trunk=given, **MIT)
    assert "user/fruit" not in hub.repos and hub.uploads == {}


def test_an_adapter_that_is_there_stays(hub, login, swin, trunk, make_adapter):
    output = make_adapter(source=swin)
    first = publish_on_hub(output, FRUIT, **MIT)
    with pytest.raises(UserError, match="--replace"):
        publish_on_hub(output, FRUIT, **MIT)
    assert pinned(FRUIT) == first
    state, config = read_adapter(output)
    write_adapter({**state, "head.bias": state["head.bias"] + 1}, config, output)
    assert publish_on_hub(output, FRUIT, replace=True, **MIT) != first
    check_use(output, trunk, swin)


def test_an_empty_repository_is_filled(hub, login, swin, trunk, make_adapter):
    hub.add("user/fruit", {".gitattributes": b""})
    output = make_adapter(source=swin)
    publish_on_hub(output, FRUIT, **MIT)
    check_use(output, trunk, swin)


def test_what_cannot_be_published(hub, swin, make_adapter, tmp_path, token, monkeypatch):
    output = make_adapter(source=swin)
    for to in (f"{FRUIT}@main2", f"{FRUIT}/a.safetensors", "hf://fruit"):
        with pytest.raises(UserError, match="hf://USER/NAME"):
            publish_on_hub(output, to, **MIT)
    with pytest.raises(UserError, match="--license"):
        publish_on_hub(output, FRUIT, license=" ")
    with pytest.raises(UserError, match="HF_TOKEN"):
        publish_on_hub(output, FRUIT, **MIT)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrong")
    with pytest.raises(UserError, match="HF_TOKEN") as caught:
        publish_on_hub(output, FRUIT, **MIT)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", token)
    shutil.copytree(output, tmp_path / "half")
    (tmp_path / "half" / CONFIG_FILE).unlink()
    with pytest.raises(UserError, match=CONFIG_FILE):
        publish_on_hub(tmp_path / "half", FRUIT, **MIT)
    assert "user/fruit" not in hub.repos
    with pytest.raises(UserError, match="license.*must be one of") as caught:
        publish_on_hub(output, FRUIT, license="unlicensed")
    assert len(str(caught.value).splitlines()) == 1
    hub.add("user/fruit", {".gitattributes": b""})
    hub.repos["user/fruit"].read_only = True
    with pytest.raises(UserError, match="HF_TOKEN"):
        publish_on_hub(output, FRUIT, **MIT)
    hub.status = 500
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="500"):
        publish_on_hub(output, FRUIT, **MIT)
    assert len(hub.repos["user/fruit"].commits) == 1


def test_the_command(hub, login, swin, make_adapter, capsys):
    output = str(make_adapter(source=swin))
    assert main(["zoo", "publish", output, "--to", FRUIT, "--license", "mit"]) == 0
    got = capsys.readouterr()
    assert pinned(FRUIT) in got.out.splitlines() and got.err == ""  # no bars outside a terminal
    assert main(["zoo", "get", FRUIT]) == 0
    path, address = fetch(FRUIT)
    got = capsys.readouterr()
    assert got.out.splitlines() == [str(path)] and address in got.err.splitlines()
    assert main(["info", FRUIT]) == 0
    assert swin in capsys.readouterr().out
    for wrong in (
        ["--to", FRUIT],
        ["--to", FRUIT, "--license", "mit", "--name", "fruit"],
        ["--to", FRUIT, "--license", "mit", "--url", "https://example.org"],
        ["--to", "zoo"],
        ["--to", "zoo", "--name", "fruit", "--license", "mit"],
    ):
        assert main(["zoo", "publish", output, *wrong]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1 and wrong[1] in error
