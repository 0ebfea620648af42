"""Start the processes of a run, or join those that torchrun started; the first failure ends all.

``--num-gpus N`` goes through Detectron2's ``launch``; its report becomes one message here.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record

from ..utils.errors import UserError

RESUME = "the same command with --resume continues from the last checkpoint"
_TORCHRUN = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT")
# Waits until a process has ended, then prints a line.
_PRINT_AFTER = """
import contextlib, os, select, sys
with contextlib.suppress(ProcessLookupError):
    select.select([os.pidfd_open(int(sys.argv[1]))], [], [], 60)
print(sys.argv[2], file=sys.stderr)
"""


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """End the program with one line on stderr and status 1 after a user's mistake or Ctrl-C."""
    try:
        yield
    except UserError as error:
        _end(f"error: {error.line}")
    except KeyboardInterrupt:
        _end(f"interrupted: {RESUME}")


def _end(line: str) -> NoReturn:
    """Exit with status 1 and ``line`` as the last one on stderr, after torchrun's long report.

    The first process that fails on a machine starts a small one, which waits for torchrun's end.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # torchrun sets it
    if error_file is None or not hasattr(os, "pidfd_open"):
        sys.exit(line)
    with contextlib.suppress(FileExistsError):
        Path(error_file).parents[1].joinpath("first").touch(exist_ok=False)
        command = [sys.executable, "-c", _PRINT_AFTER, str(os.getppid()), line]
        # A session of its own, because torchrun signals those of its processes.
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    sys.exit(1)


def launch(work: Callable[..., None], arguments: tuple, args: Namespace, device: str) -> None:
    """Run ``work(*arguments)`` in every process of the run; ``comm`` has their ranks.

    The processes are those that torchrun started, or as many as Detectron2's flags ``args`` say.
    ``device`` is ``"cuda"`` for NCCL with one device for each process, or ``"cpu"`` for Gloo. A
    process that fails without a UserError ends the program with its traceback.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        local_rank, local_world = _read_torchrun(args)
        _check_device(device, local_world)
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=DEFAULT_TIMEOUT)
        comm.create_local_process_group(local_world)
        record(_work_in_group)(work, arguments)
    elif args.num_gpus * args.num_machines == 1:
        work(*arguments)
    else:
        _check_flags(args)
        _check_device(device, args.num_gpus)
        _start(work, arguments, args, device)


def _read_torchrun(args: Namespace) -> tuple[int, int]:
    """Return the rank of this process on its machine, and how many processes that machine has."""
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set, but not {', '.join(missing)}: start with torchrun, which sets all "
            "of them, or unset WORLD_SIZE"
        )
    if args.num_gpus * args.num_machines > 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} under torchrun, which "
            "has started the processes: omit these flags, or start with python"
        )
    world, local_world, local_rank = (int(os.environ[name]) for name in _TORCHRUN[:3])
    if world % local_world:
        raise UserError(
            f"{world} processes, {local_world} of them on this machine: expected the same number "
            "on every machine"
        )
    return local_rank, local_world


def _check_device(device: str, processes: int) -> None:
    kind, found = torch.device(device), torch.cuda.device_count()
    if kind.type != "cpu" and (kind.index is not None or processes > found):
        raise UserError(
            f"train.device={device} for {processes} processes on this machine, which has {found} "
            "CUDA devices: expected cuda, and at most one process for each device"
        )


def _check_flags(args: Namespace) -> None:
    if args.num_gpus < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank "
            f"{args.machine_rank}: expected at least one process, and machine ranks from 0 to the "
            "number of machines − 1"
        )
    if args.dist_url == "auto" and args.num_machines == 1:
        return
    url = urlparse(args.dist_url)
    port = url.netloc.rpartition(":")[2]
    local = args.num_machines > 1 and url.hostname == "127.0.0.1"
    if url.scheme != "tcp" or not url.hostname or not port.isdecimal() or local:
        raise UserError(
            f"--dist-url {args.dist_url} with --num-machines {args.num_machines}: expected "
            "tcp://HOST:PORT with the name of the first machine and a free port there, the same "
            "on all machines; or auto on one machine"
        )
    if args.machine_rank == 0:
        try:
            socket.create_server(("", int(port))).close()
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--dist-url {args.dist_url}: the port cannot be used ({error}), perhaps because "
                "another run uses it: expected a free port, or auto on one machine"
            ) from None


def _start(work: Callable, arguments: tuple, args: Namespace, device: str) -> None:
    if torch.device(device).type == "cpu":
        # Detectron2's launch takes NCCL wherever it sees a CUDA device, and Gloo elsewhere.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        threads = max(1, (os.cpu_count() or 1) // args.num_gpus)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # It warns of every process that it ends, after the line that says why.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    others = multiprocessing.active_children()
    try:
        places = (args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
        detectron2_launch(_work_in_spawned, *places, args=(work, arguments))
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        _report(error, args.machine_rank * args.num_gpus + error.error_index)
    finally:
        for process in multiprocessing.active_children():
            if process not in others:
                process.terminate()


def _work_in_spawned(work: Callable, arguments: tuple) -> None:
    # torch sends SIGINT when the starting process has died. A background process of a shell
    # ignores that signal, and Python delays it while a collective operation waits.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _work_in_group(work, arguments)


def _work_in_group(work: Callable, arguments: tuple) -> None:
    comm.synchronize()
    work(*arguments)
    comm.synchronize()
    dist.destroy_process_group()


def _report(error: mp.ProcessRaisedException | mp.ProcessExitedException, rank: int) -> NoReturn:
    """Raise an error with what a user should read about the process that failed first."""
    if isinstance(error, mp.ProcessRaisedException):
        traceback = error.msg.partition("the following error:\n")[2]
        text = traceback.rpartition(f"{UserError.__module__}.UserError: ")[2]
        if text != traceback and "\n  File " not in text:  # the last exception is a UserError
            raise UserError(text) from None
        sys.exit(f"process {rank} failed:\n{traceback}")
    if error.signal_name == "SIGINT":
        raise KeyboardInterrupt from None
    how = f"was ended by {error.signal_name}" if error.signal_name else "failed"
    if error.signal_name == "SIGKILL":
        how += ", as the system does when memory runs out"
    raise UserError(f"process {rank} {how}: {RESUME}") from None
