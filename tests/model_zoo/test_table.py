"""The zoo's table: the library's own rows, rows of mirrors, and rows that must not be."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import PRESETS, UserError
from e3va.adapter_files.files import CONFIG_FILE, MODEL_FILE
from e3va.model_zoo import list_adapters, list_trunks, local_path
from e3va.model_zoo.catalogue import find_row, find_trunk_name, packaged, table
from e3va.model_zoo.rows import is_name, is_web_address, parse_table
from e3va.model_zoo.trunks import as_address

HASH = "0" * 64


def trunk(**changes) -> dict:
    row = {"preset": "swin_t", "pretraining": "", "file": "trunks/a.pth", "size": 5, "sha256": HASH}
    return {**row, **changes}


def adapter(**changes) -> dict:
    files = {name: {"size": 5, "sha256": HASH} for name in (MODEL_FILE, CONFIG_FILE)}
    return {
        "framework": "torchvision",
        "config": "mask_rcnn",
        "trunk": "a",
        "files": files,
        **changes,
    }


def parse(trunks=None, adapters=None, **changes):
    data = {"format": 1, "trunks": trunks or {}, "adapters": adapters or {}, **changes}
    return parse_table(json.dumps(data), "zoo.json")


def test_the_librarys_own_rows():
    own = packaged()
    for size in ("swin_t", "swin_s", "swin_b", "swin_l", "swin_b_384", "swin_l_384"):
        assert any(row.preset == size for row in own.trunks.values()), size
    for row in own.trunks.values():
        assert row.preset in PRESETS and row.pretraining
        assert row.file.asset or row.file.url.startswith("https://")
        assert Path(row.file.path).name.split("-")[0].split(".")[0] in (
            row.name,
            row.name.removeprefix("torchvision_"),
        )
        # The window and the image size that the file's name says are the preset's.
        match = re.search(r"window(\d+)_(\d+)", row.name)
        if match:
            preset = PRESETS[row.preset]
            assert (preset.window, preset.pretrain_size) == (int(match[1]), int(match[2]))
            assert f"{match[2]} px" in row.pretraining
        assert ("22k" in row.name) == ("22k" in row.pretraining)
    for row in own.adapters.values():
        assert row.trunk in own.trunks


def test_the_packaged_files_match_the_table():
    for row in (*packaged().trunks.values(), *packaged().adapters.values()):
        if row.files[0].asset:
            assert local_path(f"e3va://{row.name}").exists()


def test_rows_are_read(make):
    known = parse(
        {"a": trunk(url="https://a.org/x.pth", size=None, sha256=None, sha256_prefix="0123abcd")},
        {"b": adapter(url="https://a.org/b/", classes=["cat"], scores={"AP": 30}, trained_on="x")},
    )
    file = known.trunks["a"].file
    assert (file.size, file.sha256, file.is_verifiable) == (None, "0123abcd", False)
    row = known.adapters["b"]
    assert [f.path for f in row.files] == [f"adapters/b/{MODEL_FILE}", f"adapters/b/{CONFIG_FILE}"]
    assert row.files[0].url == f"https://a.org/b/{MODEL_FILE}"
    assert (row.classes, row.scores, row.trained_on) == (("cat",), {"AP": 30.0}, "x")


HOSTILE_TRUNKS = {
    "a file outside": trunk(file="trunks/../../evil.pth"),
    "an absolute file": trunk(file="/etc/passwd.pth"),
    "another folder": trunk(file="adapters/a.pth"),
    "a deeper folder": trunk(file="trunks/a/b.pth"),
    "a backslash": trunk(file="trunks\\a.pth"),
    "a hidden file": trunk(file="trunks/.pth"),
    "a percent sign": trunk(file="trunks/%2e%2e.pth"),
    "a NUL": trunk(file="trunks/a\0.pth"),
    "a newline at the end": trunk(file="trunks/a.pth\n"),
    "a pickle": trunk(file="trunks/a.pkl"),
    "a lock": trunk(file="trunks/a.pth.lock"),
    "no text": trunk(file=["trunks/a.pth"]),
    "an address of a file": trunk(url="file:///etc/passwd"),
    "an ftp address": trunk(url="ftp://a.org/a.pth"),
    "an address without a host": trunk(url="https:///a.pth"),
    "an address with a newline": trunk(url="https://a.org/a\r\nX: y"),
    "no address": trunk(url=5),
    "a negative size": trunk(size=-5),
    "size zero": trunk(size=0),
    "a huge size": trunk(size=10**12),
    "a fractional size": trunk(size=5.0),
    "a truth for a size": trunk(size=True),
    "a text for a size": trunk(size="5"),
    "a short sha256": trunk(sha256="0" * 63),
    "a capital sha256": trunk(sha256="A" * 64),
    "no sha256 text": trunk(sha256=0),
    "a wrong prefix": trunk(sha256_prefix="xyz"),
    "a file of the package": trunk(asset="swin_mini.safetensors"),
    "a command to the terminal": trunk(pretraining="\x1b[2J"),
    "a long text": trunk(preset="x" * 10_000),
    "no row": ["a"],
    "nothing in it": {},
}


@pytest.mark.parametrize("row", HOSTILE_TRUNKS.values(), ids=HOSTILE_TRUNKS)
def test_hostile_trunks(row):
    with pytest.raises(UserError, match="^zoo.json, trunk 'a'") as caught:
        parse({"a": row})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


_GOOD = {"size": 5, "sha256": HASH}
HOSTILE_ADAPTERS = {
    "no sha256": adapter(files={MODEL_FILE: {"size": 5}, CONFIG_FILE: _GOOD}),
    "an empty sha256": adapter(files={MODEL_FILE: _GOOD, CONFIG_FILE: {**_GOOD, "sha256": None}}),
    "no size": adapter(files={MODEL_FILE: {"sha256": HASH}, CONFIG_FILE: _GOOD}),
    "another file": adapter(files={MODEL_FILE: _GOOD, "../evil": _GOOD}),
    "one more file": adapter(files={MODEL_FILE: _GOOD, CONFIG_FILE: _GOOD, "x.py": _GOOD}),
    "one file": adapter(files={MODEL_FILE: _GOOD}),
    "a list of files": adapter(files=[MODEL_FILE, CONFIG_FILE]),
    "no object for a file": adapter(files={MODEL_FILE: 5, CONFIG_FILE: _GOOD}),
    "an asset": adapter(asset="adapters/x"),
    "an asset in a file": adapter(files={MODEL_FILE: {**_GOOD, "asset": "x"}, CONFIG_FILE: _GOOD}),
    "an address of a file": adapter(url="file:///etc"),
    "a trunk elsewhere": adapter(trunk="../a"),
    "no trunk": {k: v for k, v in adapter().items() if k != "trunk"},
    "a score that is none": adapter(scores={"AP": float("nan")}),
    "a huge score": adapter(scores={"AP": 10**400}),
    "scores in a list": adapter(scores=[1]),
    "a class that is none": adapter(classes=[5]),
    "classes in a text": adapter(classes="cat"),
}


@pytest.mark.parametrize("row", HOSTILE_ADAPTERS.values(), ids=HOSTILE_ADAPTERS)
def test_hostile_adapters(row):
    with pytest.raises(UserError, match="^zoo.json, adapter 'a'"):
        parse({}, {"a": row})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "a b", "a\n", "%2e", "a..b", "é", "trunks"]
)
def test_hostile_names(name):
    for rows in ({"trunks": {name: trunk()}}, {"adapters": {name: adapter()}}):
        with pytest.raises(UserError, match="^zoo.json, .*name"):
            parse(**rows)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not a zoo's table"),
        (b"[1]", "not a zoo's table"),
        (b"\xff\xfe", "not a zoo's table"),
        (b"[" * 100_000, "not a zoo's table"),
        (b'{"format": 2}', "format '2': this e3va reads format 1"),
        (b'{"format": true}', "format 'True'"),
        (b"{}", "format 'None'"),
        (b'{"format": 1, "trunks": []}', "trunks .*expected a JSON object"),
        (b'{"format": 1, "adapters": 5}', "adapters .*expected a JSON object"),
    ],
)
def test_files_that_are_not_tables(text, match):
    with pytest.raises(UserError, match=match):
        parse_table(text, "zoo.json")


def test_rows_with_the_same_name_or_file():
    with pytest.raises(UserError, match="adapter 'a': 'a' has a too"):
        parse({"a": trunk()}, {"a": adapter()})
    with pytest.raises(UserError, match="'b': 'a' has trunks/a.pth"):
        parse({"a": trunk(), "b": trunk()})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted({*trunk(url=""), *adapter(url="")})), value=json_values)
@settings(max_examples=150, deadline=None)
def test_any_value_of_any_entry_is_read_or_refused(key, value):
    for rows in (
        {"trunks": {"a": trunk(**{key: value})}},
        {"adapters": {"a": adapter(**{key: value})}},
    ):
        try:
            known = parse(**rows)
        except UserError as error:
            assert str(error).isprintable()
            continue
        for row in known.trunks.values():
            assert re.fullmatch(r"trunks/[\w.-]+\.(pth|safetensors)", row.file.path, re.ASCII)
            assert ".." not in row.file.path and not row.file.asset


@given(st.text(max_size=20))
def test_names_and_addresses_are_harmless(text):
    if is_name(text):
        assert Path("root", text).name == text and not text.startswith(".")
        assert re.fullmatch(r"[\w.-]+", text, re.ASCII) and ".." not in text
    for address in (text, f"http://{text}"):
        if is_web_address(address):
            assert address.startswith(("http://", "https://")) and address.isprintable()


def test_a_mirror_adds_rows_and_changes_none(tmp_path, monkeypatch, make):
    name = "swin_base_patch4_window7_224"
    evil = make.checkpoint(seed=666)
    rows = {
        name: make.trunk_row(evil, name),
        "thief": make.trunk_row(evil, name),  # another name for the same file
        "mine": make.trunk_row(evil, "mine"),
    }
    (tmp_path / "trunks").mkdir()
    for row in rows.values():
        (tmp_path / row["file"]).write_bytes(evil)
    del rows["thief"]
    (tmp_path / "zoo.json").write_bytes(make.table(rows))
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path))
    assert list_trunks()[name] == packaged().trunks[name]
    assert list_trunks()["mine"].file.size == len(evil)
    assert local_path("e3va://mine").read_bytes() == evil
    with pytest.raises(UserError, match=rf"{name}\.pth has \d+ bytes instead of 352792251"):
        local_path(f"e3va://{name}")
    rows = {"thief": make.trunk_row(evil, name)}
    (tmp_path / "zoo.json").write_bytes(make.table(rows))
    assert "thief" not in list_trunks()


def test_a_broken_table_of_a_mirror(tmp_path, monkeypatch):
    """Names of the library's own table still work; all others end in an error."""
    (tmp_path / "zoo.json").write_text('{"format": 7}')
    monkeypatch.setenv("E3VA_ZOO", str(tmp_path))
    assert local_path("e3va://swin_mini").is_file()
    for use in (list_adapters, lambda: local_path("e3va://other")):
        with pytest.raises(UserError, match="format '7'"):
            use()


def test_names_are_found_or_the_nearest_are_listed():
    assert find_trunk_name("swin_tiny_patch4_window7_224.pth") == "swin_tiny_patch4_window7_224"
    assert find_trunk_name("swin_t-704ceda3.pth") == "torchvision_swin_t"
    assert find_trunk_name("nothing") is None
    assert find_row("swin_mini").preset == "swin_mini"
    with pytest.raises(UserError, match="no 'swin_tiny_window7': nearest: swin_tiny_patch4_window"):
        find_row("swin_tiny_window7")
    with pytest.raises(UserError, match="no 'xyz': known: swin_mini, .*e3va zoo list"):
        find_row("xyz")


@pytest.mark.parametrize("value", ["/not/there", "ftp://a.org/zoo", "file:///tmp", "http://"])
def test_invalid_mirrors(monkeypatch, value):
    monkeypatch.setenv("E3VA_ZOO", value)
    with pytest.raises(UserError, match=f"E3VA_ZOO={value}:"):
        table()


def test_a_bare_name_means_a_trunk_of_the_zoo_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert as_address("swin_mini") == "e3va://swin_mini"
    assert as_address("swin_tiny_patch4_window7_224.pth") == "e3va://swin_tiny_patch4_window7_224"
    assert as_address("swin_huge") == "e3va://swin_huge"  # which the zoo refuses with near names
    assert as_address("my_weights.pth") is None and as_address("folder/swin_mini") is None
    (tmp_path / "swin_mini").touch()
    assert as_address("swin_mini") is None
