"""A full disk, a missing or read-only folder, a crash: one line, and the old file stays."""

import errno
import subprocess
import sys

import pytest
import torch

from e3va.utils.atomic import WriteError, atomic_open, rename_atomically, save_atomically, writing

# A limit of the system on the size of a file stands for a full disk.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
"""
SAVE = """
import torch
from e3va.utils.atomic import save_atomically
data = {"weights": [torch.zeros(2**20), torch.zeros(2**19)], "step": 3}
data["same"] = data["weights"][0]
"""
WRITE = """
from e3va.utils.atomic import atomic_open
"""


def limited(code: str) -> subprocess.CompletedProcess:
    caught = "".join(f"    {line}\n" for line in code.strip().splitlines())
    handler = "except Exception as error:\n    print(type(error).__name__, error)"
    text = f"{LIMITED}try:\n{caught}{handler}\n"
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)


def test_a_model_that_does_not_fit_says_how_much_it_needs_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_atomically({"step": 1}, path)
    done = limited(f"{SAVE}\nsave_atomically(data, {str(path)!r})")
    assert done.stdout.startswith("WriteError"), done
    # 1.5 · 2^20 numbers of 4 bytes, the shared storage once.
    assert f"{path} cannot be written" in done.stdout and "6.0 MiB are needed" in done.stdout
    assert "MiB are free" in done.stdout and done.stdout.count("\n") == 1
    assert torch.load(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]


def test_a_text_that_does_not_fit_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    done = limited(
        f"{WRITE}\nwith atomic_open({str(path)!r}, 'w') as file:\n    file.write('x' * 2**21)"
    )
    assert done.stdout.startswith("WriteError") and "needed" not in done.stdout, done
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_gone_or_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, reason in (("gone", "No such file"), ("file", "Not a directory")):
        with pytest.raises(WriteError, match=reason) as caught:
            save_atomically({"step": 1}, tmp_path / folder / "model.pth")
        assert caught.value.path == tmp_path / folder / "model.pth"
        assert "\n" not in caught.value.line


def test_an_error_of_something_else_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_open(tmp_path / "copy") as file:
        file.write((tmp_path / "elsewhere" / "source").read_bytes())
    with pytest.raises(ConnectionResetError), rename_atomically(tmp_path / "download"):
        raise ConnectionResetError(errno.ECONNRESET, "cut")
    with pytest.raises(RuntimeError, match="mine"), atomic_open(tmp_path / "mine"):
        raise RuntimeError("mine")
    assert not list(tmp_path.iterdir())
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"step": lambda: 0}, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


def test_a_line_that_cannot_be_added_is_an_error_of_its_file(tmp_path):
    with pytest.raises(WriteError, match="metrics.jsonl") as caught, writing("/dev/metrics.jsonl"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "No space left on device" in caught.value.reason
