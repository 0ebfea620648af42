"""Files found, downloaded, checked at every use; addresses; the path handler."""

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from iopath.common.file_io import PathManager, g_pathmgr
from safetensors.torch import save_file

import e3va
from e3va import UserError
from e3va.model_zoo import E3VAPathHandler, catalogue, local_path, register, store
from e3va.weights.checkpoint import load_file
from e3va.weights.eight_bits import METADATA, pack

ADDRESS = "e3va://small"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_downloaded_once_then_offline(web, small, cache, capsys):
    path = local_path(ADDRESS)
    assert path == cache / "trunks" / "small.pth" and path.read_bytes() == small
    capsys.readouterr()
    web.stop()
    web.requests.clear()
    for address in (ADDRESS, f"{ADDRESS}/", "e3va://trunks/small.pth", "e3va://trunks/small"):
        assert local_path(address) == path
    assert web.requests == [] and capsys.readouterr().err == ""


def test_offline_and_not_cached(web, small, cache, monkeypatch):
    manager = PathManager()
    register(manager)
    assert manager.exists(ADDRESS)  # so the mirror's table is known
    web.stop()
    with pytest.raises(UserError) as caught:
        local_path(ADDRESS)
    text = str(caught.value)
    assert f"{web.address}/trunks/small.pth" in text and "refused" in text and "\n" not in text
    assert f"{cache}/trunks/small.pth" in text and "E3VA_ZOO" in text
    (cache / "trunks").mkdir(exist_ok=True)
    (cache / "trunks/small.pth").write_bytes(small)  # by hand
    assert local_path(ADDRESS).read_bytes() == small
    monkeypatch.delenv("E3VA_ZOO")
    with pytest.raises(UserError, match="no 'small'"):
        local_path(ADDRESS)


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda data: data[:-100], "41541 bytes instead of 41641"),
        (lambda data: data + b"\0", "bytes instead of"),
        (lambda data: b"", "0 bytes instead of"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "sha256 .* instead of"),
    ],
)
def test_a_cached_file_that_was_altered(web, small, capsys, change, values):
    path = local_path(ADDRESS)
    path.write_bytes(change(small))
    capsys.readouterr()
    assert local_path(ADDRESS).read_bytes() == small
    assert len(web.requests_for("trunks/small.pth")) == 2
    text = capsys.readouterr().err
    assert str(path) in text and re.search(values, text)


def test_a_renamed_file_is_downloaded_again(web, small, make, cache):
    """The file has the name of another trunk."""
    other = make.checkpoint(seed=1)
    web.files["trunks/other.pth"] = other
    web.files["zoo.json"] = make.table(
        {"small": make.trunk_row(small), "other": make.trunk_row(other, "other")}
    )
    one, two = local_path(ADDRESS), local_path("e3va://other")
    one.replace(two)
    assert two.read_bytes() == small
    assert local_path("e3va://other").read_bytes() == other
    assert local_path(ADDRESS).read_bytes() == small


def test_a_wrong_file_then_the_right_one(web, small, make, cache):
    local, wrong = cache / "trunks" / "small.pth", bytes(len(small))
    assert catalogue.list_trunks()["small"]  # and so the mirror's table is in the cache
    web.faults = [make.fault(), make.fault(data=wrong)]
    with pytest.raises(UserError, match=digest(wrong)) as caught:
        local_path(ADDRESS)
    assert digest(small) in str(caught.value) and not local.exists()
    assert local_path(ADDRESS).read_bytes() == small


@pytest.mark.parametrize("change", [{"size": 41640}, {"sha256_prefix": "00000000"}])
def test_size_and_sha256_prefix_are_checked(web, make, monkeypatch, cache, change):
    data = make.checkpoint()
    web.files["trunks/small.pth"] = data
    row = make.trunk_row(data, **{"sha256": None, "size": None, **change})
    web.files["zoo.json"] = make.table({"small": row})
    monkeypatch.setenv("E3VA_ZOO", web.address)
    with pytest.raises(UserError, match="41640 bytes|00000000"):
        local_path(ADDRESS)
    assert not (cache / "trunks" / "small.pth").exists()
    right = make.trunk_row(data, sha256=None, sha256_prefix=digest(data)[:8])
    web.files["zoo.json"] = make.table({"small": right})
    assert local_path(ADDRESS).read_bytes() == data


def test_a_file_of_unknown_sha256_gives_a_warning(web, make, monkeypatch, capsys, cache):
    data = make.checkpoint()
    web.files["trunks/small.pth"] = data
    web.files["zoo.json"] = make.table({"small": make.trunk_row(data, sha256=None, size=None)})
    monkeypatch.setenv("E3VA_ZOO", web.address)
    path = local_path(ADDRESS)
    line = capsys.readouterr().err.splitlines()[-1]
    assert "could not be verified" in line and digest(data) in line
    assert local_path(ADDRESS) == path and capsys.readouterr().err == ""
    assert len(web.requests_for("trunks/small.pth")) == 1


def test_a_row_of_the_library_is_downloaded_from_a_mirror(web, make, monkeypatch):
    """The sha256 of this row is not public, and the mirror has no table."""
    data = make.checkpoint()
    name = "swin_small_patch4_window7_224"
    web.files[f"trunks/{name}.pth"] = data
    monkeypatch.setenv("E3VA_ZOO", f"{web.address}/")
    assert local_path(f"e3va://{name}").read_bytes() == data
    assert [request.path for request in web.requests] == [f"trunks/{name}.pth"]


def test_a_folder_is_used_in_place(tmp_path, make, monkeypatch, cache):
    data, folder = make.checkpoint(), tmp_path / "mirror"
    (folder / "trunks").mkdir(parents=True)
    file = folder / "trunks" / "small.pth"
    file.write_bytes(data)
    (folder / "zoo.json").write_bytes(make.table({"small": make.trunk_row(data)}))
    monkeypatch.setenv("E3VA_ZOO", str(folder))
    assert local_path(ADDRESS) == file
    assert not (cache / "trunks" / "small.pth").exists()
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{file} has 41640 bytes instead of 41641"):
        local_path(ADDRESS)
    assert file.exists()  # it is the user's, not ours to delete
    file.unlink()
    with pytest.raises(UserError, match=f"{file} .*E3VA_ZOO"):
        local_path(ADDRESS)


def test_a_cache_that_cannot_be_written(web, small, cache):
    cache.mkdir(parents=True)
    (cache / "trunks").write_text("a file in the folder's place")
    with pytest.raises(UserError, match=r"small\.pth cannot be written .*FVCORE_CACHE"):
        local_path(ADDRESS)


def test_the_cache_never_falls_back_to_a_folder_of_others(web, small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot be written .*FVCORE_CACHE"):
        local_path(ADDRESS)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_with_code_never_gets_into_the_cache(
    web, make, monkeypatch, cache, tmp_path, known
):
    """Other programs would unpickle it from there, even if its sha256 is that of the row."""
    marker, file = tmp_path / "executed", tmp_path / "evil.pth"
    for write in (
        lambda: torch.save({"model": Evil(marker)}, file),
        lambda: file.write_bytes(pickle.dumps({"model": Evil(marker)})),
    ):
        write()
        data = file.read_bytes()
        row = make.trunk_row(data) if known else make.trunk_row(data, sha256=None, size=None)
        web.files.update({"trunks/small.pth": data, "zoo.json": make.table({"small": row})})
        monkeypatch.setenv("E3VA_ZOO", web.address)
        with pytest.raises(UserError, match="running code|not .* plain tensors"):
            local_path(ADDRESS, refresh=True)
        assert not marker.exists() and not (cache / "trunks" / "small.pth").exists()
        folder = tmp_path / "mirror"
        (folder / "trunks").mkdir(parents=True, exist_ok=True)
        (folder / "trunks" / "small.pth").write_bytes(data)
        (folder / "zoo.json").write_bytes(web.files["zoo.json"])
        monkeypatch.setenv("E3VA_ZOO", str(folder))
        with pytest.raises(UserError, match="running code|not .* plain tensors"):
            local_path(ADDRESS)
        assert not marker.exists()


def test_a_replaced_file_is_found_after_refreshing(web, small, make, capsys):
    path = local_path(ADDRESS)
    newer = make.checkpoint(seed=2)
    web.files["trunks/small.pth"] = newer
    web.files["zoo.json"] = make.table({"small": make.trunk_row(newer)})
    assert local_path(ADDRESS).read_bytes() == small  # what is here serves
    assert local_path(ADDRESS, refresh=True).read_bytes() == newer
    path.unlink()
    web.files["trunks/small.pth"] = small
    web.files["zoo.json"] = make.table({"small": make.trunk_row(small)})
    assert local_path(ADDRESS).read_bytes() == small  # the table is downloaded before a file is
    web.requests.clear()
    assert local_path(ADDRESS, force=True).read_bytes() == small
    assert len(web.requests_for("trunks/small.pth")) == 1


def test_the_table_of_a_mirror_is_cached(web, small, cache, capsys):
    local_path(ADDRESS)
    copy = next((cache / "mirrors").glob("*.json"))
    web.stop()
    assert local_path(ADDRESS, refresh=True).read_bytes() == small
    assert "could not be read" in capsys.readouterr().err
    copy.write_text("{")
    with pytest.raises(UserError, match=str(copy)):
        local_path(ADDRESS)
    copy.unlink()
    with pytest.raises(UserError, match="no 'small'"):
        local_path(ADDRESS)


def test_a_hostile_table_of_a_web_mirror_is_not_kept(web, small, cache):
    local_path(ADDRESS)
    web.files["zoo.json"] = b'{"format": 7}'
    with pytest.raises(UserError, match=f"{web.address}/zoo.json has format '7'"):
        local_path(ADDRESS, refresh=True)
    assert local_path(ADDRESS).read_bytes() == small


def test_a_table_that_is_too_long(web, small, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_TABLE_CAP", 50)
    (tmp_path / "zoo.json").write_bytes(web.files["zoo.json"])
    for place in (web.address, str(tmp_path)):
        monkeypatch.setenv("E3VA_ZOO", place)
        with pytest.raises(UserError, match="longer than .*50 bytes"):
            local_path(ADDRESS)


HOSTILE = [
    "e3va://../../etc/passwd",
    "e3va://adapters/../../etc/passwd",
    "e3va://adapters/..",
    "e3va://trunks/../small",
    "e3va:///etc/passwd",
    "e3va:////etc/passwd",
    "e3va://%2e%2e/%2e%2e/etc/passwd",
    "e3va://trunks/..%2fsmall.pth",
    "e3va://trunks\\small.pth",
    "e3va://small\0",
    "e3va://small\n",
    "e3va://./small",
    "e3va://trunks//small.pth",
    "e3va://small/small.pth",
    "e3va://trunks/small.pth/x",
    "e3va://trunks/small.pth.lock",
    "e3va://mirrors/x.json",
    "e3va://adapters/small",
    "e3va://a/b/c/d",
    "e3va://" + "a" * 5000,
    "e3va://C:small",
    "e3va://~root",
    "file:///etc/passwd",
    "/etc/passwd",
    "small",
    "",
]


@pytest.mark.parametrize("address", HOSTILE, ids=lambda text: repr(text)[:40])
def test_hostile_addresses(web, small, address):
    local_path(ADDRESS)
    manager = PathManager()
    register(manager)
    with pytest.raises(UserError) as caught:
        local_path(address)
    assert "\n" not in str(caught.value)
    if address.startswith("e3va://"):
        assert not (manager.exists(address) or manager.isfile(address) or manager.isdir(address))
        with pytest.raises(UserError):
            manager.open(address, "rb")


parts = st.sampled_from(
    ["..", ".", "", "trunks", "adapters", "small", "small.pth", "%2e%2e", "etc", "~", "a\0", "\\"]
)


@given(st.lists(parts, max_size=5).map("/".join) | st.text(max_size=12))
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_address_leads_out_of_cache_and_package(web, small, cache, rest):
    try:
        path = local_path(f"e3va://{rest}")
    except UserError as error:
        assert "\n" not in str(error)
        return
    roots = (cache, Path(e3va.__file__).parent / "assets")
    assert any(path.resolve().is_relative_to(root.resolve()) for root in roots)


def read_through(manager, data: bytes) -> None:
    register(manager)
    register(manager)  # once more changes nothing
    assert Path(manager.get_local_path(ADDRESS)).read_bytes() == data
    with manager.open("e3va://trunks/small.pth", "rb") as file:
        assert file.read() == data
    assert manager.isfile(ADDRESS) and not manager.isdir(ADDRESS)
    assert not manager.exists("e3va://nothing") and not manager.isfile("e3va://trunks")
    assert manager.isdir("e3va://") and manager.isdir("e3va://trunks")
    assert manager.ls("e3va://") == ["trunks", "adapters"]
    assert {"small.pth", "swin_mini.safetensors"} <= set(manager.ls("e3va://trunks"))
    for mode in ("w", "wb", "a", "r+"):
        with pytest.raises(UserError, match=mode):
            manager.open(ADDRESS, mode)
    with pytest.raises(UserError, match="is a file"):
        manager.ls(ADDRESS)
    with pytest.raises(UserError, match="small.pth"):
        manager.get_local_path("e3va://trunks")
    with pytest.raises(ValueError, match="Unused"):
        manager.get_local_path(ADDRESS, cache_dir="x")


def test_a_fresh_path_manager(small):
    read_through(PathManager(), small)


def test_iopaths_global_path_manager(small):
    read_through(g_pathmgr, small)


def test_detectron2s_path_manager(small):
    file_io = pytest.importorskip("detectron2.utils.file_io")
    read_through(file_io.PathManager, small)


def test_force_through_the_handler(web, small):
    manager = PathManager()
    manager.register_handler(E3VAPathHandler())
    manager.get_local_path(ADDRESS)
    manager.get_local_path(ADDRESS, force=True)
    assert len(web.requests_for("trunks/small.pth")) == 2


def test_a_file_of_unknown_size_has_a_limit(web, make, monkeypatch):
    monkeypatch.setattr(store, "SIZE_CAP", 1000)
    data = make.checkpoint()
    web.files["trunks/small.pth"] = data
    web.files["zoo.json"] = make.table({"small": make.trunk_row(data, size=None)})
    monkeypatch.setenv("E3VA_ZOO", web.address)
    with pytest.raises(UserError, match="1000 bytes"):
        local_path(ADDRESS)


def test_other_programs_get_a_trunk_with_8_bit_matrices_in_float32(cache, tmp_path, capsys):
    manager = PathManager()
    register(manager)
    packed = local_path("e3va://swin_mini")
    path = Path(manager.get_local_path("e3va://swin_mini"))
    assert packed.suffix == ".safetensors" and path.is_relative_to(cache)
    state, expected = torch.load(path)["model"], load_file(packed)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert "swin_mini" in capsys.readouterr().err
    before = path.stat().st_mtime_ns
    with manager.open("e3va://swin_mini", "rb") as file:
        assert file.read() == path.read_bytes()
    assert path.stat().st_mtime_ns == before and capsys.readouterr().err == ""
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(100))
    assert manager.get_local_path("e3va://swin_mini") == str(path) and path.read_bytes() == whole
    # A file of that name with other weights is not taken for the first one.
    other = tmp_path / packed.name
    save_file(pack({"a.weight": torch.eye(3)}), other, metadata=METADATA)
    assert store.plain_copy(other) == path
    torch.testing.assert_close(torch.load(path)["model"], {"a.weight": torch.eye(3)})
    save_file({"a.weight": torch.eye(3)}, other)
    assert store.plain_copy(other) == other
