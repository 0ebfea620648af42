"""``hf://`` addresses: what is downloaded, what the cache gives, and what is refused."""

import contextlib
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, constants

from e3va import UserError
from e3va.adapter_files.files import CONFIG_FILE, MODEL_FILE, read_adapter
from e3va.model_zoo.hub import fetch, parse_hub_address
from e3va.model_zoo.resolve import local_path, pinned
from e3va.model_zoo.trunks import find_trunk_of, read_trunk_file

NAME = "user/small"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def one_line(*values):
    """A UserError of one line that has the values."""
    with pytest.raises(UserError) as caught:
        yield
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and all(value in text for value in values), text


def test_the_parts_of_an_address():
    place = parse_hub_address("hf://timm/swin_tiny_patch4_window7_224.ms_in1k")
    assert (place.repo, place.revision, place.file) == (
        *("timm/swin_tiny_patch4_window7_224.ms_in1k", "main"),
        "",
    )
    place = parse_hub_address("hf://user/name@v1.0/folder/a.safetensors")
    assert (place.repo, place.revision, place.file) == ("user/name", "v1.0", "folder/a.safetensors")
    assert parse_hub_address(place.address) == place
    place = parse_hub_address("hf://user/name@refs/pr/7/a.safetensors")
    assert (place.revision, place.file) == ("refs/pr/7", "a.safetensors")
    assert parse_hub_address("hf://user/name/") == parse_hub_address("hf://user/name@main")
    assert parse_hub_address(f"hf://user/name/{CONFIG_FILE}").file == ""


@pytest.mark.parametrize(
    "address",
    [
        *("hf://", "hf://name", "hf://user/", "hf://../name", "hf://user/..", "hf://user/a b"),
        *("hf://user/name@", "hf://user/name@../x", "hf://user/name/../x.safetensors"),
        *("hf://user/name\n", "hf://user//x.safetensors", "hf://user/name@a@b", "hf://ü/name"),
    ],
)
def test_texts_that_are_no_address(address):
    with pytest.raises(UserError, match="hf://USER/NAME"):
        parse_hub_address(address)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "swin.pth", "x.pkl", "config.json", "x"])
def test_other_files_are_refused(hub, file, weights):
    hub.add(NAME, {file: weights})
    with one_line(file, ".safetensors"):
        fetch(f"hf://{NAME}/{file}")
    assert hub.requests == []


def test_a_trunk(hub, trunk, weights):
    """Of all files only the safetensors file is downloaded."""
    files = {"pytorch_model.bin": b"pickle", "README.md": b"text", "model.safetensors": weights}
    commit = hub.add(NAME, files)
    path, address = fetch(f"hf://{NAME}")
    assert address == f"hf://{NAME}@{commit}/model.safetensors"
    assert path.read_bytes() == weights and files_of(path.parent) == {path.name: weights}
    state, source = read_trunk_file(f"hf://{NAME}")
    assert source == address and state.keys() == trunk.keys()
    assert all(torch.equal(state[key], trunk[key]) for key in trunk)
    assert hub.gets(".bin") == hub.gets(".md") == [] and len(hub.gets(".safetensors")) == 1


def test_an_adapter(hub, make_adapter):
    output = make_adapter()
    commit = hub.add(NAME, {**files_of(output), "README.md": b"", "swin.safetensors": b"other"})
    path, address = fetch(f"hf://{NAME}")
    assert address == f"hf://{NAME}@{commit}" and files_of(path) == files_of(output)
    assert read_adapter(path)[1].classes == ("cat", "dog")
    assert local_path(f"hf://{NAME}/{MODEL_FILE}") == path


def test_files_that_change_under_the_same_name(hub, trunk, weights, make_adapter):
    first = hub.add(NAME, {"model.safetensors": weights})
    old = pinned(f"hf://{NAME}")
    changed = weights[:-4] + bytes(4)
    hub.add(NAME, {"model.safetensors": changed})
    new = pinned(f"hf://{NAME}")
    assert old == f"hf://{NAME}@{first}/model.safetensors" != new
    assert local_path(old).read_bytes() == weights and local_path(new).read_bytes() == changed
    adapter = read_adapter(make_adapter(source=old))[1]  # finds the trunk of its training again
    assert find_trunk_of(adapter)[1] == old


def test_a_pinned_address_needs_no_request(hub, weights, make_adapter):
    hub.add(NAME, {"model.safetensors": weights})
    hub.add("user/fruit", files_of(make_adapter()))
    for name in (NAME, "user/fruit"):
        address = pinned(f"hf://{name}")
        hub.requests.clear()
        assert pinned(address) == address and hub.requests == []
        fetch(address, force=True)
        assert hub.gets(".safetensors") == [""]


@pytest.mark.parametrize("name", [NAME, "user/fruit", f"{NAME}/model.safetensors"])
@pytest.mark.parametrize("why", ["offline", "stopped", "status 503"])
def test_without_the_hub_the_cache_is_used(
    hub, weights, make_adapter, name, why, monkeypatch, capsys
):
    hub.add(NAME, {"model.safetensors": weights})
    hub.add("user/fruit", files_of(make_adapter()))
    before = fetch(f"hf://{name}")
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "stopped":
        hub.stop()
        hub.stop = lambda: None
    else:
        hub.status = 503
    assert fetch(f"hf://{name}") == before
    err = capsys.readouterr().err
    assert len(err.splitlines()) == (0 if "tensors" in name else 1)  # of a file nothing is said
    with one_line("user/other"):
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        fetch("hf://user/other")


def test_a_cut_download_goes_on_where_it_was_cut(hub, weights, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept of a cut answer
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add(NAME, {"model.safetensors": weights})
    hub.cuts = [30_000, 50_000]
    assert len(weights) > 90_000
    assert fetch(f"hf://{NAME}")[0].read_bytes() == weights
    assert hub.gets(".safetensors") == ["", "bytes=30000-", "bytes=80000-"]


def test_a_download_that_stays_cut_leaves_no_file(hub, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add(NAME, {"model.safetensors": weights})
    hub.cuts = [0] * 100
    with one_line(f"hf://{NAME}", hub.address):
        fetch(f"hf://{NAME}")
    snapshots = [p for p in (tmp_path / "hf").rglob("*.safetensors") if "snapshots" in str(p)]
    assert snapshots == []
    hub.cuts = []
    assert fetch(f"hf://{NAME}")[0].read_bytes() == weights


def test_names_that_the_hub_does_not_have(hub, weights):
    hub.add(NAME, {"model.safetensors": weights})
    with one_line("hf://user/other", "repository"):
        fetch("hf://user/other")
    with one_line("hf://user/other/a.safetensors", "repository"):
        fetch("hf://user/other/a.safetensors")
    with one_line(f"hf://{NAME}@v9", "revision"):
        fetch(f"hf://{NAME}@v9")
    with one_line(f"hf://{NAME}@v9/model.safetensors", "revision"):
        fetch(f"hf://{NAME}@v9/model.safetensors")
    with one_line("other.safetensors", "file"):
        fetch(f"hf://{NAME}/other.safetensors")


@pytest.mark.parametrize("given", [NAME, f"{NAME}/model.safetensors"])
def test_a_private_repository(hub, weights, token, given, monkeypatch):
    hub.add(NAME, {"model.safetensors": weights})
    hub.repos[NAME].private = True
    with one_line(f"hf://{given}", "token", "HF_TOKEN"):
        fetch(f"hf://{given}")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrong")
    with one_line("HF_TOKEN"):
        fetch(f"hf://{given}")
    monkeypatch.setenv("HF_TOKEN", token)
    assert fetch(f"hf://{given}")[0].read_bytes() == weights


@pytest.mark.parametrize("before", [0, 150])
def test_a_token_in_an_error_is_not_printed(hub, token, before, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(f"{'x' * before} illegal header 'Bearer {token}'")

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(UserError) as caught:
        fetch(f"hf://{NAME}")
    assert "Bearer" in str(caught.value) or before
    assert token[:6] not in str(caught.value)


def test_repositories_without_one_choice(hub, weights):
    hub.add("user/pickles", {"pytorch_model.bin": b"", "swin.pth": b""})
    with one_line("hf://user/pickles", "pytorch_model.bin", ".safetensors"):
        fetch("hf://user/pickles")
    hub.add("user/empty", {})
    with one_line("hf://user/empty"):
        fetch("hf://user/empty")
    hub.add("user/many", {"a.safetensors": weights, "b.safetensors": b"", "c.bin": b""})
    with one_line("a.safetensors, b.safetensors", "hf://user/many/a.safetensors"):
        fetch("hf://user/many")
    assert fetch("hf://user/many/a.safetensors")[0].read_bytes() == weights
    hub.add("user/many", {"model.safetensors": weights, "model.fp16.safetensors": b""})
    assert fetch("hf://user/many")[0].name == "model.safetensors"
    hub.add("user/below", {"swin/a.safetensors": weights})
    assert fetch("hf://user/below")[1].endswith("/swin/a.safetensors")
    hub.add("user/half", {MODEL_FILE: weights})
    with one_line("hf://user/half", CONFIG_FILE):
        fetch("hf://user/half")


def test_a_repository_that_changes_between_two_requests(hub, weights, monkeypatch):
    hub.add(NAME, {"first.safetensors": weights})
    ask = HfApi.model_info

    def ask_and_change(*args, **options):
        answer = ask(*args, **options)
        hub.add(NAME, {"second.safetensors": weights})
        return answer

    monkeypatch.setattr(HfApi, "model_info", ask_and_change)
    with one_line(NAME, "first.safetensors"):
        fetch(f"hf://{NAME}")


def test_a_pickle_of_another_name_is_refused(hub):
    hub.add(NAME, {"model.safetensors": pickle.dumps({"model": {}})})
    with one_line("model.safetensors"):
        fetch(f"hf://{NAME}")


def test_an_altered_file_of_the_cache_is_refused(hub, weights):
    hub.add(NAME, {"model.safetensors": weights})
    path, address = fetch(f"hf://{NAME}")
    path.resolve().write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with one_line(address, "sha256"):
        fetch(address)
    path.resolve().unlink()
    assert fetch(address)[0].read_bytes() == weights


def test_a_full_disk(hub, weights, monkeypatch):
    hub.add(NAME, {"model.safetensors": weights})

    def full(*_, **__):
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with one_line("/x", "No space left on device"):
        fetch(f"hf://{NAME}")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with one_line(f"hf://{NAME}", "e3va[hub]"):
        fetch(f"hf://{NAME}")
