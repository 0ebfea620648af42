"""A run starts in the right number of processes, and ends in all of them with one message."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from e3va import UserError
from e3va.detectron2 import launch as launching

SCRIPT = Path(__file__).resolve().parents[2] / "projects" / "E3VA" / "lazyconfig_train_net.py"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def finish(command):
    """Run to the end; a hang is an error."""
    arguments = list(map(str, command))
    return subprocess.run(arguments, capture_output=True, text=True, timeout=180)


# The failures of processes that wait for each other, without a training around them.
WAIT = """
import os, signal, sys
from argparse import Namespace

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from e3va import UserError
from e3va.detectron2.launch import launch, one_message


def work(how):
    failing = int(how[-1]) if how[-1].isdigit() else 1
    torch.distributed.all_reduce(torch.ones(1))
    if how == "forever":
        os.write(1, b"%d\\n" % os.getpid())
        while True:
            torch.distributed.all_reduce(torch.ones(1))
    if comm.get_rank() == failing or how == "all":
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raise":
            raise FloatingPointError("a loss of process 1 is NaN")
        raise UserError("the disk is full: expected some room")
    for _ in range(100):
        torch.distributed.all_reduce(torch.ones(1))


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    with one_message():
        launch(work, tuple(args.opts), args, "cpu")
"""
MISTAKE = "error: the disk is full: expected some room\n"


@pytest.fixture
def waiting(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    return tmp_path / "wait.py"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "all"])
def test_a_process_that_fails_ends_the_run_with_its_message_once(waiting, how):
    done = finish([sys.executable, waiting, "--num-gpus", 2, "--dist-url", "auto", how])
    assert done.returncode == 1
    if how == "raise":
        assert done.stderr.count("process 1 failed:\nTraceback") == 1
        assert done.stderr.rstrip().endswith("FloatingPointError: a loss of process 1 is NaN")
    else:
        assert done.stderr.count(MISTAKE) == 1 and done.stderr.endswith(MISTAKE)
        assert "Traceback" not in done.stderr
    assert "Connection closed" not in done.stderr  # what the other process makes of it
    assert "Terminating process" not in done.stderr  # nor what torch logs about ending it


@pytest.mark.slow
def test_a_mistake_of_one_process_is_the_last_line_under_torchrun(waiting):
    done = finish([*TORCHRUN, 2, waiting, "mistake"])
    assert done.returncode == 1
    assert done.stderr.count(MISTAKE) == 1 and done.stderr.endswith(f"\n{MISTAKE}")


@pytest.mark.slow
def test_a_mistake_of_all_processes_is_the_last_line_under_torchrun():
    config = "custom/cascade_mask_rcnn_e3va_swin_t.py"
    done = finish([*TORCHRUN, 2, SCRIPT, "--config-file", config, "train.sede=1"])
    assert done.returncode == 1
    assert done.stderr.count("no config key 'train.sede'") == 1
    assert done.stderr.splitlines()[-1].startswith("error: no config key 'train.sede'")


@pytest.mark.slow
def test_torchrun_reports_a_killed_process(waiting):
    done = finish([*TORCHRUN, 2, waiting, "kill"])
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL) received" in done.stderr


@pytest.mark.slow
def test_two_machines_end_together(waiting):
    """Two launchers on this machine stand for two machines of one process each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        url = f"tcp://localhost:{free.getsockname()[1]}"
    flags = ("--num-gpus", 1, "--num-machines", 2, "--dist-url", url, "--machine-rank")
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(finish, [sys.executable, waiting, *flags, rank, "mistake0"])
            for rank in (1, 0)
        ]
        other, first = (run.result() for run in runs)
    assert first.returncode == other.returncode == 1
    assert first.stderr.endswith(MISTAKE) and "Traceback" not in first.stderr
    assert other.stderr.count("process 1 failed:") == 1


def flags(**changes):
    usual = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return Namespace(**{**usual, **changes})


def refused(device="cpu", **changes):
    with pytest.raises(UserError) as caught:
        launching.launch(print, (), flags(**changes), device)
    return caught.value.line


def test_flags_that_make_no_sense_are_refused():
    assert "--num-gpus 0" in refused(num_gpus=0)
    assert "--machine-rank 2" in refused(num_machines=2, machine_rank=2)
    for url in ("nowhere", "tcp://localhost", "tcp://localhost:x", "http://localhost:1"):
        expected = f"--dist-url {url} with --num-machines 1: expected tcp://HOST:PORT"
        assert expected in refused(num_gpus=2, dist_url=url)
    assert "--dist-url tcp://h:99999" in refused(num_gpus=2, dist_url="tcp://h:99999")
    for url in ("auto", "tcp://127.0.0.1:5000"):
        assert f"--dist-url {url}" in refused(num_machines=2, dist_url=url)
    assert "train.device=cuda:1" in refused("cuda:1", num_gpus=2)
    if torch.cuda.device_count() < 64:
        assert "64 processes" in refused("cuda", num_gpus=64)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert url in refused(num_gpus=2, dist_url=url)


def test_what_torchrun_sets_and_the_flags_must_agree(monkeypatch):
    for name in launching._TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert "LOCAL_WORLD_SIZE, LOCAL_RANK, RANK, MASTER_ADDR, MASTER_PORT" in refused()
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4"), ("RANK", "5")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert launching._read_torchrun(flags()) == (1, 4)
    assert "--num-gpus 2 --num-machines 1 under torchrun" in refused(num_gpus=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert "8 processes, 3 of them on this machine" in refused()
    monkeypatch.setenv("WORLD_SIZE", "1")
    ran = []
    launching.launch(ran.append, (1,), flags(), "cpu")
    assert ran == [1]


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_processes_end_with_the_one_that_started_them(waiting, by):
    """A killed one was started in a shell's background, where processes ignore SIGINT."""
    command = [sys.executable, waiting, "--num-gpus", "2", "--dist-url", "auto", "forever"]
    if by == signal.SIGKILL:
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    # In a group of its own, so that what a failing test leaves can be found and ended.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    starter = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    try:
        workers = [int(starter.stdout.readline()) for _ in range(2)]
        starter.send_signal(by)
        # The pipes close when the last worker has ended.
        _, errors = starter.communicate(timeout=180)
        assert not [pid for pid in workers if is_running(pid)]
        if by == signal.SIGINT:
            assert starter.returncode == 1 and "Traceback" not in errors
            assert errors.splitlines()[-1] == f"interrupted: {launching.RESUME}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(starter.pid, signal.SIGKILL)


def is_running(pid):
    """Whether a process exists and has not ended (a zombie has)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
