"""A process that holds one method's model and runs steps on request."""

import contextlib
import logging
import multiprocessing
import os
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch

from e3va.utils.errors import UserError

from .models import Spec

RESULT, MISTAKE, NO_FIT, FAILED = "result", "mistake", "does not fit", "failed"


class DoesNotFitError(Exception):
    """A method needs more memory than the machine has."""


class Worker:
    """A process for one method. It computes between :meth:`send` and :meth:`receive`."""

    def __init__(self, spec: Spec):
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print to stderr
        context = multiprocessing.get_context("spawn")  # CUDA forbids fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, spec), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, command: str, *arguments: Any) -> None:
        """Request ``command``: ``"build"``, or a method of :class:`cost.bench.Bench`."""
        # If the process has died, receive() reports it.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send((command, arguments))

    def receive(self) -> Any:
        """Return the answer.

        Raises:
            DoesNotFitError: the process ran out of memory.
            UserError: the process reported a mistake of the user, or ended.
        """
        try:
            kind, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            if code == -signal.SIGKILL:  # the system kills a process when memory runs out
                raise DoesNotFitError("killed by the system") from None
            raise UserError(f"a process ended with status {code}; its output is above") from None
        if kind == NO_FIT:
            raise DoesNotFitError(answer)
        if kind == MISTAKE:
            raise UserError(answer)
        if kind == FAILED:
            raise RuntimeError(f"in the process of a method:\n{answer}")
        return answer

    def ask(self, command: str, *arguments: Any) -> Any:
        """Request a command and wait for the answer."""
        self.send(command, *arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def serve(connection: Connection, spec: Spec) -> None:
    """Run the process: receive commands and send answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    # The frameworks' imports would print their warnings in each process.
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    bench = None
    while True:
        try:
            command, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if command == "build":
                from .bench import Bench

                bench = Bench(spec)
                answer = RESULT, bench.facts()
            else:
                answer = RESULT, getattr(bench, command)(*arguments)
        except UserError as error:
            answer = MISTAKE, error.line
        except Exception as error:
            why = out_of_memory(error)
            answer = (NO_FIT, why) if why else (FAILED, traceback.format_exc())
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):  # the parent has left
            return


def out_of_memory(error: Exception) -> str | None:
    """Return the first sentence of an out-of-memory error; None for other errors."""
    text = " ".join(str(error).split())
    known = ("out of memory", "not enough memory", "can't allocate memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in known)
    ):
        return text.split(". ")[0] or "out of memory"
    return None
