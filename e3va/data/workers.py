"""Batches from worker processes, also where ``/dev/shm`` is too small for them."""

import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import Lock
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from ..utils.errors import UserError, brief

MEMORY = "/dev/shm"
FEWER = (
    "--workers 0 (with Detectron2: dataloader.train.num_workers=0 dataloader.test.num_workers=0)"
)
MORE = "in a container: docker run --shm-size=1g"


@dataclass
class _Packed:
    """A batch that a worker has pickled: its tensors are in shared memory, or in the bytes."""

    content: bytes
    is_shared: bool


class WorkerBatches:
    """The batches of a DataLoader, which is changed.

    torch puts the tensors of a worker's batch into shared memory in a thread of the worker. If they
    do not fit, the thread prints a traceback, and the main process waits without an end. Here, the
    worker itself does it, and sends a batch that does not fit through a pipe.
    """

    def __init__(self, loader: DataLoader):
        self.loader = loader
        loader.collate_fn = partial(_pack, loader.collate_fn)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches.

        Raises:
            UserError: the worker processes cannot be started, or one of them was killed.
        """
        warned = False
        try:
            # The processes' locks lie in shared memory too, about eight for each process.
            _ = [Lock() for _ in range(8 * self.loader.num_workers)]
        except OSError as error:
            raise UserError(
                f"no processes that read images can be started ({brief(error)}): {MEMORY} needs "
                f"more memory ({MORE}), or use {FEWER}"
            ) from None
        try:
            for batch in self.loader:
                if isinstance(batch, _Packed):
                    if not batch.is_shared and not warned:
                        print(_describe_small_memory(), file=sys.stderr, flush=True)
                        warned = True
                    batch = pickle.loads(batch.content)
                yield batch
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"a process that reads images was ended ({brief(error)}): if memory ran out, use "
                f"fewer workers, or {FEWER}"
            ) from None


def _pack(collate: Callable[[list], Any], examples: list) -> Any:
    global _use_pipe
    batch = collate(examples)
    if get_worker_info() is None:
        return batch
    if not _use_pipe:
        try:
            return _Packed(bytes(ForkingPickler.dumps(batch)), True)
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            # The tensors that did fit stay in shared memory, so a second try would fill it more.
            _use_pipe = True
    return _Packed(pickle.dumps(batch), False)


_use_pipe = False  # in a worker: whether shared memory was too small


def _describe_small_memory() -> str:
    size = shutil.disk_usage(MEMORY).total / 2**20
    return (
        f"note: {MEMORY} has {size:.0f} MiB, too little for the batches of the worker processes: "
        f"they go through pipes, which is slower; give it more memory ({MORE}), or use {FEWER}"
    )
