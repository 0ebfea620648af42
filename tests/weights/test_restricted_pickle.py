"""The restricted unpickler returns the saved tensors, and runs nothing that a pickle names."""

import collections
import contextlib
import functools
import io
import os
import pickle
import struct
import textwrap
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from e3va import UserError
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.restricted_pickle import _MAKERS

DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")


def written(folder, data: bytes, name="c.pkl"):
    path = folder / name
    path.write_bytes(data)
    return path


@settings(max_examples=60, deadline=None)
@given(
    array=st.sampled_from(DTYPES)
    .flatmap(lambda kind: st.sampled_from([np.dtype(f"{order}{kind}") for order in "<>"]))
    .flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0))),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    fortran=st.booleans(),
)
def test_numpy_arrays_of_all_types_orders_and_protocols(tmp_path_factory, array, protocol, fortran):
    array = np.asarray(array, order="F" if fortran else "C")
    data = {
        "model": {"a": array, "same": array},
        "__author__": "nobody",
        "scale": array.dtype.type(1),
    }
    path = written(tmp_path_factory.mktemp("p"), pickle.dumps(data, protocol=protocol))
    loaded = load_file(path)
    expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")).copy())
    found = loaded["model"]["a"]
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.numpy().tobytes() == expected.numpy().tobytes()  # NaN too
    assert loaded["__author__"] == "nobody" and loaded["scale"] == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_and_ordered_dicts(tmp_path, protocol):
    layer = torch.nn.Linear(3, 2)
    base = torch.arange(24.0).view(4, 6)
    data = {
        "model": layer.state_dict(),  # an OrderedDict with an attribute
        "view": base.t()[1:4, ::2],
        "half": base.to(torch.bfloat16),
        "parameter": layer.weight,
        "bytes": b"\x00\xff",
        "empty": (b"", [torch.empty(0, 3)]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # reading causes no warning
        loaded = load_file(written(tmp_path, pickle.dumps(data, protocol=protocol)))
    for key in ("view", "half", "parameter"):
        assert torch.equal(loaded[key], data[key]) and loaded[key].dtype == data[key].dtype
    assert loaded["model"].keys() == {"weight", "bias"}
    assert torch.equal(loaded["model"]["bias"], layer.bias)
    assert loaded["bytes"] == b"\x00\xff"
    assert loaded["empty"][0] == b"" and loaded["empty"][1][0].shape == (0, 3)


def python_2_pickle(numbers: list[float]) -> bytes:
    """Return protocol 2 as Python 2's cPickle wrote it, with ``str`` for keys and bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    dtype = b"cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"<") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    )
    array += (
        b"(K\x01" + bytes([ord("K"), len(numbers)]) + b"\x85" + dtype + b"\x89" + text(raw) + b"tb"
    )
    head = b"\x80\x02}(" + text(b"model") + b"}" + text(b"stem.conv1.weight")
    tail = text(b"__author__") + text(b"Caff\xe9") + text(b"matching_heuristics") + b"\x88u."
    return head + array + b"s" + tail


def test_a_file_of_python_2_as_in_detectron2s_zoo(tmp_path):
    numbers = [0.0, -1.5, 3.25e7, 1e-30]  # their bytes are no UTF-8
    data = python_2_pickle(numbers)
    assert np.array_equal(  # it is what Python itself reads so
        pickle.loads(data, encoding="latin1")["model"]["stem.conv1.weight"], np.float32(numbers)
    )
    loaded = load_file(written(tmp_path, data))
    assert torch.equal(loaded["model"]["stem.conv1.weight"], torch.tensor(numbers))
    assert loaded["matching_heuristics"] is True
    assert list(model_state(loaded, "c.pkl")) == ["stem.conv1.weight"]


class Call:
    """An object that is pickled as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def attacks(marker) -> dict[str, bytes]:
    """Return pickles of dicts that create ``marker`` when ``pickle.load`` reads them."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    calls = {
        "os.system": Call(os.system, command),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(marker), "w"),
        "partial": Call(functools.partial, os.system, command),
        "numpy.load": Call(np.load, str(marker)),
        "numpy.memmap": Call(np.memmap, str(marker), "u1", "w+", 0, (4,)),
        "torch.load": Call(torch.load, str(marker)),
        "getattr": Call(getattr, "text", "upper"),
        "nested": Call(torch.storage._load_from_bytes, legacy(Call(os.system, command))),
        "in OrderedDict": collections.OrderedDict(a=Call(os.system, command)),
    }
    found = {name: pickle.dumps({"model": call}, protocol=2) for name, call in calls.items()}
    found |= {f"{name} 5": pickle.dumps({"model": c}, protocol=5) for name, c in calls.items()}
    line = command.encode()
    found["protocol 0"] = b"(dp0\nS'model'\np1\ncos\nsystem\n(S'" + line + b"'\ntRs."
    found["at once"] = b"cos\nsystem\n(S'" + line + b"'\ntR."
    found["instance"] = b"\x80\x02}U\x05model(U" + bytes([len(line)]) + line + b"ios\nsystem\ns."
    return found


def legacy(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["c.pkl", "c.pth", "c.pyth", "c.safetensors"])
def test_no_function_in_a_pickle_is_called(tmp_path, name):
    marker = tmp_path / "executed"
    for attack, data in attacks(marker).items():
        message = refused(written(tmp_path, data, name))
        assert "running code" in message, attack
        assert not marker.exists(), attack


def test_pythons_own_reader_runs_the_attacks(tmp_path):
    """Show that the attacks work; otherwise the test above would prove nothing."""
    marker, harmless = tmp_path / "executed", []
    for attack, data in attacks(marker).items():
        with contextlib.suppress(OSError):
            pickle.loads(data)
        if not marker.exists():
            harmless.append(attack.removesuffix(" 5"))
        marker.unlink(missing_ok=True)
    assert set(harmless) == {"partial", "numpy.load", "torch.load", "getattr"}  # but calls too


def test_the_message_has_the_forbidden_name(tmp_path):
    for value, name in ((Call(eval, "1"), "eval"), (Call(os.getcwd), "posix.getcwd")):
        for data in (pickle.dumps({"a": value}), legacy({"a": value})):
            assert name in refused(written(tmp_path, data))
        torch.save({"a": value}, tmp_path / "zip.pth")
        assert name in refused(tmp_path / "zip.pth")


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes on the object below it on the stack, even a function or class."""
    before = {name: (vars(f).copy(), f.__defaults__) for name, f in _MAKERS.items()}
    for name in ("collections OrderedDict", *(n.replace(".", " ") for n in ("numpy.dtype",))):
        module, attribute = name.split()
        target = f"c{module}\n{attribute}\n".encode()
        for state in (b"}U\x04evilK\x01s", b"N}U\x0c__defaults__K\x01\x85s\x86"):
            data = b"\x80\x02}U\x05model" + target + state + b"bs."
            with contextlib.suppress(UserError):
                load_file(written(tmp_path, data))
    assert before == {name: (vars(f), f.__defaults__) for name, f in _MAKERS.items()}
    assert not hasattr(collections.OrderedDict, "evil")


def damaged_pickles():
    good = pickle.dumps({"model": {"a": np.ones((2, 3), "f4")}}, protocol=2)
    yield "shape larger than the data", good.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")
    yield "negative shape", good.replace(b"K\x02K\x03\x86", b"K\x02J\xff\xff\xff\xff\x86")
    yield "objects", pickle.dumps({"a": np.array([{}, None])}, protocol=2)
    yield "text", pickle.dumps({"a": np.array(["text"])}, protocol=2)
    yield "complex", pickle.dumps({"a": np.ones(2, "c8")}, protocol=2)
    tensor = pickle.dumps({"a": torch.ones(2, 3)}, protocol=2)
    yield "tensor larger than its storage", tensor.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86")
    yield "memo of 32 GB", b"\x80\x02}r\xff\xff\xff\x7f."
    yield "string of 4 GB", b"\x80\x02}X\xf0\xff\xff\xffab"
    yield "itself", b"\x80\x02}q\x00U\x01ah\x00s."
    yield "extension", b"\x80\x02}U\x01a\x82\x01s."
    yield "persistent", b"\x80\x02}U\x01aU\x01bQs."


def test_damaged_pickles_are_refused(tmp_path):
    for name, data in damaged_pickles():
        assert "cannot be read as a checkpoint" in refused(written(tmp_path, data)), name


def test_shared_lists_do_not_multiply(tmp_path):
    value: list = [1]
    for _ in range(60):
        value = [value, value]
    assert load_file(written(tmp_path, pickle.dumps({"a": value}, protocol=2)))["a"][0]


GOOD = pickle.dumps(
    {"model": {"a": np.ones((2, 3), "f4"), "b": torch.ones(2)}, "n": np.int64(3)}, protocol=2
)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
def test_altered_and_cut_pickles_are_read_or_refused(tmp_path_factory, place, byte, cut):
    data = bytearray(GOOD)
    data[place] = byte
    folder = tmp_path_factory.mktemp("p")
    for altered in (bytes(data), GOOD[:cut]):
        try:
            assert isinstance(load_file(written(folder, altered)), dict)
        except UserError as error:
            assert "\n" not in str(error)
    if cut < len(GOOD):
        refused(written(folder, GOOD[:cut]))


def test_a_files_kind_is_read_off_its_first_bytes(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    data = {"a": torch.arange(3.0)}
    torch.save(data, tmp_path / "zip")
    (tmp_path / "old").write_bytes(legacy(data))
    (tmp_path / "plain").write_bytes(pickle.dumps(data, protocol=2))
    save_file(data, tmp_path / "safe")
    for kind in ("zip", "old", "plain", "safe"):
        content = (tmp_path / kind).read_bytes()
        for suffix in (".pth", ".pt", ".bin", ".pkl", ".pyth", ".safetensors", ""):
            path = written(tmp_path, content, f"named{suffix}")
            assert torch.equal(load_file(path)["a"], data["a"])
            cut = written(tmp_path, content[: len(content) * 2 // 3], f"cut{suffix}")
            assert "cannot be read" in refused(cut)


def test_other_kinds_of_files_are_recognized(tmp_path):
    page = "\n<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>"
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    for content, what in (
        (b"", "it is empty"),
        (page.encode(), "it is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
        (pointer.encode(), "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "compressed archive"),
        (textwrap.dedent("some text of a reader").encode(), "another kind of file"),
        (b"PK\x03\x04" + bytes(50), "another kind of file"),
        (bytes(600), "another kind of file"),
    ):
        for suffix in (".pth", ".pkl", ".safetensors"):
            assert what in refused(written(tmp_path, content, f"file{suffix}"))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt")
