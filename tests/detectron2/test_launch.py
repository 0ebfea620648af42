"""A run starts in the right number of processes, and ends in all of them with one message."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from e3va import UserError
from e3va.detectron2 import launch as launching

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def finish(command):
    """Run to the end; a hang is an error."""
    given = list(map(str, command))
    return subprocess.run(given, capture_output=True, text=True, timeout=180)


# The failures of processes that wait for each other, without a training around them.
WAIT = """
import os, signal, sys
from argparse import Namespace

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from e3va import UserError
from e3va.detectron2.launch import join_torchrun, launch


def work(how):
    failing = int(how[-1]) if how[-1].isdigit() else 1
    torch.distributed.all_reduce(torch.ones(1))
    if how == "forever":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
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
    peers = join_torchrun(args)
    with peers.one_message():
        launch(work, tuple(args.opts), args, "cpu", peers)
"""
MISTAKE = "error: the disk is full: expected some room\n"


@pytest.fixture
def waiting(tmp_path):
    (tmp_path / "wait.py").write_text(WAIT)
    return tmp_path / "wait.py"


@pytest.mark.parametrize(
    ("start", "how"), [("launcher", "raise"), ("launcher", "all"), ("torchrun", "mistake")]
)
def test_a_process_that_fails_ends_the_run_with_its_message_once(waiting, start, how):
    if start == "launcher":
        done = finish([sys.executable, waiting, "--num-gpus", 2, "--dist-url", "auto", how])
    else:
        done = finish([*TORCHRUN, 2, waiting, how])
    assert done.returncode == 1
    own = done.stderr.split("torch/distributed/elastic")[0]  # torchrun adds a report
    if how == "raise":
        assert own.count("process 1 failed:\nTraceback") == 1
        assert own.count("FloatingPointError: a loss of process 1 is NaN\n") == 1
    else:
        assert done.stderr.count(MISTAKE) == 1
        assert "Traceback" not in own
    assert "Connection closed" not in own  # what the other process makes of it
    assert "torch/multiprocessing/spawn.py" not in own  # nor what torch says of ending it


def test_torchrun_tells_of_a_killed_process(waiting):
    done = finish([*TORCHRUN, 2, waiting, "kill"])
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL) received" in done.stderr


def test_two_machines_end_together_and_each_says_why(waiting):
    """Two launchers on this machine stand for two machines of one process each; the first, which
    holds what both say, fails."""
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
    assert first.stderr.count(MISTAKE) == 1
    assert other.stderr.count(f"process 0 ended on another machine: {MISTAKE}") == 1
    assert "Traceback" not in first.stderr + other.stderr


def flags(**given):
    usual = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return Namespace(**{**usual, **given})


def refused(device="cpu", **given):
    with pytest.raises(UserError) as caught:
        launching.launch(print, (), flags(**given), device, launching.Peers())
    return caught.value.line


def test_flags_that_make_no_sense_are_refused():
    assert "expected at least one process" in refused(num_gpus=0)
    assert "machine ranks from 0" in refused(num_machines=2, machine_rank=2)
    assert "--dist-url nowhere: expected tcp://HOST:PORT" in refused(num_gpus=2, dist_url="nowhere")
    assert "--dist-url auto for 2 machines" in refused(num_machines=2)
    assert "train.device=cuda:1 for several" in refused("cuda:1", num_gpus=2)
    if torch.cuda.device_count() < 64:
        assert "64 processes on this machine, which has" in refused("cuda", num_gpus=64)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        assert "another run may use the port" in refused(num_gpus=2, dist_url=url)


def test_what_torchrun_says_and_the_flags_must_agree(monkeypatch):
    place = launching.place_from_torchrun
    for name in launching._TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert place(flags()) is None
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="RANK and WORLD_SIZE are set, but not LOCAL_RANK, LOCAL_W"):
        place(flags())
    for name, value in (("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert place(flags()) == launching.Place(5, 8, 1, 4)
    with pytest.raises(UserError, match="--num-gpus 2 --num-machines 1 under torchrun"):
        place(flags(num_gpus=2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="expected the same number on every machine"):
        place(flags())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place(flags()) is None


def test_processes_end_with_the_one_that_started_them(waiting):
    command = [sys.executable, waiting, "--num-gpus", "2", "--dist-url", "auto", "forever"]
    # In a group of its own, so that what a failing test leaves can be found and ended.
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        workers = [int(starter.stdout.readline()) for _ in range(2)]
        starter.kill()
        starter.communicate(timeout=180)  # the pipe closes when the last worker has ended
        assert not [pid for pid in workers if is_running(pid)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(starter.pid, signal.SIGKILL)


def is_running(pid):
    """Whether a process is there and has not ended (a zombie has)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
