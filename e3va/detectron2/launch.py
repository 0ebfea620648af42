"""Start the processes of a run, or join those that torchrun started; the first failure ends all.

A failure is told once on each machine, by the process that failed first; what others say because
they lost it is left out.
"""

import contextlib
import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous

from ..utils.errors import UserError

INTERRUPTED = "interrupted: the same command with --resume goes on from the last checkpoint"
_TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
_TO_HEAR = timedelta(seconds=10)  # for the text of another process that failed first


@dataclass(frozen=True)
class Place:
    """Where a process stands: of all processes, and of those of its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def place_from_torchrun(args: Namespace) -> Place | None:
    """The place that torchrun's environment variables say; None if it did not start this process,
    or this one alone.

    Raises:
        UserError: some of them are missing, or ``--num-gpus`` asks for still more processes.
    """
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(missing)}: expected all that "
            "torchrun sets; start with torchrun, or unset them"
        )
    if args.num_gpus * args.num_machines > 1:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} under torchrun, which "
            "has started the processes: leave these flags out, or start with python"
        )
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in _TORCHRUN[:4])
    if world % local_world:
        raise UserError(
            f"{world} processes, {local_world} of them on this machine: expected the same number "
            "on every machine"
        )
    return Place(rank, world, local_rank, local_world)


class Peers:
    """What a process says when it fails, so that a run fails with one message.

    Args:
        store: that all processes of the run see; None for a run of one process.
        place: of this process.
        interrupted: what to say when the user interrupts the run.
    """

    def __init__(
        self,
        store: dist.Store | None = None,
        place: Place | None = None,
        interrupted: str = INTERRUPTED,
    ):
        self.store = store
        self.place = place
        self.interrupted = interrupted

    @contextlib.contextmanager
    def one_message(self) -> Iterator[None]:
        """Within it, a user's mistake or an interruption ends the process with its line on stderr
        and status 1; with several processes any exception does, once for all of them."""
        try:
            yield
        except UserError as error:
            self._end(f"error: {error.line}")
        except KeyboardInterrupt:
            self._end(self.interrupted)
        except Exception:
            if self.store is None:
                raise
            self._end(f"process {self.place.rank} failed:\n{traceback.format_exc()}")

    def _end(self, text: str) -> NoReturn:
        if self.store is None:
            sys.exit(text)
        self.store.set_timeout(_TO_HEAR)
        try:
            self._say(text)
        except RuntimeError:  # the store has gone with the process that held it
            print(text, file=sys.stderr, flush=True)
        sys.exit(1)

    def _say(self, text: str) -> None:
        machine = f"machine {self.place.rank // self.place.local_world}"
        if self.store.add("failures", 1) == 1:
            self.store.add(machine, 1)
            print(text, end="\n" * bool(text), file=sys.stderr, flush=True)
            last = text.strip().rpartition("\n")[2]
            self.store.set("said", f"process {self.place.rank} ended on another machine: {last}")
            return
        # Others leave only when that has been said: who leaves first lets the rest be ended.
        said = self.store.get("said").decode()
        if self.store.add(machine, 1) == 1:
            print(said, file=sys.stderr, flush=True)


def join_torchrun(args: Namespace) -> Peers:
    """The peers of a process that torchrun started; those of no one otherwise.

    Raises:
        UserError: see :func:`place_from_torchrun`.
    """
    place = place_from_torchrun(args)
    if place is None:
        return Peers()
    store, _, _ = next(rendezvous("env://", timeout=DEFAULT_TIMEOUT))
    return Peers(store, place)


def launch(
    work: Callable[..., None],
    arguments: tuple,
    args: Namespace,
    device: str,
    peers: Peers,
) -> None:
    """Run ``work(*arguments)`` in every process of the run: in this one if torchrun started it or
    it is to be alone, else in as many as Detectron2's flags say. Within ``work``, Detectron2's
    ``comm`` knows all processes and those of this machine.

    Args:
        work: a function that spawned processes can import.
        arguments: of ``work``; picklable.
        args: Detectron2's flags ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url``.
        device: ``"cuda"``, one for each process, with NCCL; or ``"cpu"``, with Gloo.
        peers: from :func:`join_torchrun`.

    Raises:
        UserError: a device for several processes, flags that make no sense, a port in use.
        SystemExit: a process failed; it has said why.
    """
    if peers.place is not None:
        return _work_in_group(work, arguments, device, peers)
    if args.num_gpus * args.num_machines == 1:
        return work(*arguments)
    _check_flags(args)
    _check_device(device, args.num_gpus)
    framework, port, server = _serve(args)
    # Behind the line that says why a run ends, it would warn of every process that it ends.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = mp.start_processes(
        _spawned,
        (work, arguments, device, (framework, port), args),
        nprocs=args.num_gpus,
        join=False,
    )
    try:
        _wait(context, args.machine_rank * args.num_gpus)
    except BaseException:
        if server is not None:
            _let_machines_hear(server, args.num_machines)
        raise
    finally:
        for process in context.processes:
            process.terminate()


def _check_flags(args: Namespace) -> None:
    if args.num_gpus < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines} --machine-rank "
            f"{args.machine_rank}: expected at least one process, and machine ranks from 0 to the "
            "number of machines − 1"
        )


def _check_device(device: str, processes: int) -> None:
    kind = torch.device(device)
    if kind.type == "cpu":
        return
    if kind.index is not None:
        raise UserError(
            f"train.device={device} for several processes: expected cuda, of which each takes one"
        )
    if processes > torch.cuda.device_count():
        raise UserError(
            f"{processes} processes on this machine, which has {torch.cuda.device_count()} CUDA "
            "devices: expected at most one process for each"
        )


def _serve(args: Namespace) -> tuple[str, int, dist.Store | None]:
    """Address of the store in which processes meet; the first machine serves it, and this process
    does, so that it is there until the last one has ended."""
    url = urlparse("tcp://127.0.0.1:0" if args.dist_url == "auto" else args.dist_url)
    if url.scheme != "tcp" or not url.hostname or url.port is None:
        raise UserError(f"--dist-url {args.dist_url}: expected tcp://HOST:PORT, or auto")
    if args.num_machines > 1 and (args.dist_url == "auto" or url.hostname == "127.0.0.1"):
        raise UserError(
            f"--dist-url {args.dist_url} for {args.num_machines} machines: expected "
            "tcp://HOST:PORT with the first machine's name and a free port of it, the same on all"
        )
    if args.machine_rank > 0:
        return url.hostname, url.port, None
    try:
        store = dist.TCPStore(url.hostname, url.port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise UserError(
            f"--dist-url {args.dist_url} cannot be served ({' '.join(str(error).split())[:100]}): "
            "another run may use the port; expected a free one, or auto on one machine"
        ) from None
    return url.hostname, store.port, store


def _spawned(
    local_rank: int,
    work: Callable[..., None],
    arguments: tuple,
    device: str,
    address: tuple[str, int],
    args: Namespace,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    place = Place(
        rank=args.machine_rank * args.num_gpus + local_rank,
        world=args.num_machines * args.num_gpus,
        local_rank=local_rank,
        local_world=args.num_gpus,
    )
    store = dist.TCPStore(*address, is_master=False, timeout=DEFAULT_TIMEOUT)
    peers = Peers(store, place, interrupted="")  # the first process says that
    with peers.one_message():
        _work_in_group(work, arguments, device, peers)


def _end_with_parent() -> None:
    # torch sends SIGINT then, which what a shell starts in the background ignores.
    multiprocessing.parent_process().join()
    os._exit(1)


def _work_in_group(work: Callable, arguments: tuple, device: str, peers: Peers) -> None:
    place = peers.place
    _check_device(device, place.local_world)
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(place.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.local_world))
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", peers.store),
        rank=place.rank,
        world_size=place.world,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(place.local_world)
    comm.synchronize()
    work(*arguments)
    comm.synchronize()
    dist.destroy_process_group()


def _let_machines_hear(server: dist.Store, machines: int) -> None:
    """Keep the store until every machine has said why the run ends."""
    if machines > 1:
        with contextlib.suppress(RuntimeError):
            server.wait([f"machine {machine}" for machine in range(machines)], _TO_HEAR)


def _wait(context: mp.ProcessContext, first_rank: int) -> None:
    while True:
        multiprocessing.connection.wait(list(context.sentinels))
        # Before join() ends the others.
        ended: list[Any] = [process.exitcode for process in context.processes]
        try:
            if context.join():
                return
        except mp.ProcessExitedException as error:
            ended[error.error_index] = error.exit_code
            killed = [rank for rank, code in enumerate(ended) if code is not None and code < 0]
            if not killed:
                sys.exit(1)  # it has said why
            name = signal.Signals(-ended[killed[0]]).name
            why = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            raise UserError(
                f"process {first_rank + killed[0]} was ended by {name}{why}: the same command with "
                "--resume goes on from the last checkpoint"
            ) from None
