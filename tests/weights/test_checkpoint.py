"""Files survive crashes, and broken or hostile ones are refused in one line."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e3va import UserError
from e3va.utils.atomic import atomic_open, remove_leftovers, save_atomically
from e3va.weights.checkpoint import check_same_tensors, load_file, model_state


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_open(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    with atomic_open(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from e3va.utils.atomic import atomic_open
        with atomic_open(sys.argv[1]) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old" and len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_leftovers_of_a_living_process_stay(tmp_path):
    with atomic_open(tmp_path / "file") as file:
        file.write(b"new")
        remove_leftovers(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"new"


def test_round_trip(tmp_path):
    data = {"model": {"a": torch.arange(3)}, "iteration": 7}
    save_atomically(data, tmp_path / "c.pth")
    loaded = load_file(tmp_path / "c.pth")
    assert loaded["iteration"] == 7 and torch.equal(loaded["model"]["a"], torch.arange(3))


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        load_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_refused(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "c.pth"
    save_atomically({"model": {"a": torch.rand(500)}}, path)
    os.truncate(path, int(path.stat().st_size * share))
    assert "cannot be read as a checkpoint" in refused(path) or "damaged" in refused(path)


def test_missing_files_and_other_kinds_are_refused(tmp_path):
    assert refused(tmp_path / "nowhere.pth").startswith("no weights file")
    (tmp_path / "text.pth").write_text("hello there, this is text\n" * 5)
    assert "text.pth" in refused(tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list: expected a dict" in refused(tmp_path / "list.pth")


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda d, p: p.write_bytes(pickle.dumps(d))])
def test_code_in_a_file_is_not_run(tmp_path, write):
    write({"model": Payload(tmp_path / "executed")}, tmp_path / "c.pth")
    assert "running code" in refused(tmp_path / "c.pth")
    assert not (tmp_path / "executed").exists()


def test_the_state_is_found_where_training_scripts_put_it():
    tensor = torch.zeros(1)
    for data in (
        {"a": tensor},
        {"model": {"a": tensor}, "epoch": 3},
        {"state_dict": {"module.a": tensor}},
        {"a": tensor, "epoch": 3},
    ):
        assert list(model_state(data, "f.pth")) == ["a"]
    with pytest.raises(UserError, match="f.pth holds no tensors"):
        model_state({"epoch": 3}, "f.pth")


def test_tensors_of_a_file_and_a_model_are_compared():
    own = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": torch.zeros(1)}
    check_same_tensors(own, {k: v + 1 for k, v in own.items()}, "f.pth", "advice")
    for found, values in (
        ({**own, "b": torch.zeros(4, 3)}, ["lacks 0 of 3", "1 of another", "b: [4, 3]", "[3, 4]"]),
        ({"a": own["a"], "b": own["b"]}, ["lacks 1 of 3", "c: absent"]),
        ({**own, "d": own["a"]}, ["1 are unknown", "d: [2]"]),
    ):
        with pytest.raises(UserError) as caught:
            check_same_tensors(own, found, "f.pth", "advice")
        assert all(value in caught.value.line for value in ("f.pth", *values, "advice"))


def test_a_pickle_that_ends_within_an_operation_is_refused(tmp_path):
    """In torch's archive: an index of four bytes, of which two are there."""
    torch.save({"model": {}}, tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(tmp_path / "cut.pth", "w") as cut,
    ):
        for info in whole.infolist():
            data = whole.read(info)
            cut.writestr(info, b"\x80\x02}r\0\0" if info.filename.endswith("data.pkl") else data)
    with pytest.raises(UserError, match="cut.pth cannot be read as a checkpoint"):
        load_file(tmp_path / "cut.pth")
