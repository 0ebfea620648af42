"""One training at a time writes into a folder; one that was killed is not in the way."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from e3va import UserError
from e3va.utils.lock import FILE, FolderLock

HOLD = """
import os, sys, time
from e3va.utils.lock import FolderLock
lock = FolderLock(sys.argv[1])
if len(sys.argv) > 2:  # a process of its own, like those that read images, outlives it
    if os.fork() == 0:
        time.sleep(60)
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder, *more) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), *more]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    process = holder(tmp_path)
    with pytest.raises(UserError) as caught:
        FolderLock(tmp_path)
    line = caught.value.line
    assert str(tmp_path) in line and f"process {process.pid} on" in line
    process.communicate("")
    assert process.returncode == 0
    assert not (tmp_path / FILE).exists()
    FolderLock(tmp_path).release()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("more", [(), ("with a child",)])
def test_the_lock_of_a_killed_process_is_not_in_the_way(tmp_path, more):
    process = holder(tmp_path, *more)
    try:
        process.kill()
        process.wait()
        assert (tmp_path / FILE).exists()
        FolderLock(tmp_path).release()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_one_process_may_train_again(tmp_path):
    first = FolderLock(tmp_path)
    first.release()
    first.release()
    second = FolderLock(tmp_path)
    (tmp_path / FILE).unlink()  # somebody tidied up
    second.release()


def test_a_lock_that_is_dropped_is_released(tmp_path):
    FolderLock(tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        FolderLock(tmp_path / "gone")
    assert "gone" in caught.value.line and "No such file" in caught.value.line
