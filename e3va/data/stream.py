"""An endless stream of training batches; batch n depends only on the seed and on n.

The seed determines the order of images. Random choices are seeded with the seed and a position in
that order. So a resumed run sees the same examples as an uninterrupted one, with any number of
worker processes.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.seeding import derive_seed, seed_everything
from .workers import WorkerBatches


@dataclass(eq=False)
class BatchStream(Sampler):
    """An endless stream of batches of (position in the stream, index of the image).

    Images come in epochs, each a permutation. A batch holds images of one orientation, so that
    padding stays small; an image waits until there are enough of its orientation. With several
    processes, each takes consecutive pieces of a common batch, which is the same for any number of
    processes.
    """

    wide: Sequence[bool]  # for each image, whether it is wider than high
    batch_size: int  # number of images in a batch of this process
    seed: int
    start: int = 0  # number of batches to skip
    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole, first = self.batch_size * self.world, self.batch_size * self.rank
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        done = 0
        for position, index in self._positions():
            bucket = waiting[self.wide[index]]
            bucket.append((position, index))
            if len(bucket) == whole:
                if done >= self.start:
                    yield bucket[first : first + self.batch_size]
                bucket.clear()
                done += 1

    def _positions(self) -> Iterator[tuple[int, int]]:
        size, epoch = len(self.wide), 0
        while True:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(size, generator=generator).tolist()
            for offset, index in enumerate(order):
                yield epoch * size + offset, index
            epoch += 1


class SeededDataset(Dataset):
    """Examples made from records; the seed and the position seed the mapper's random choices."""

    def __init__(self, records: Sequence[Any], mapper: Callable[[Any], Any], seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        position, index = key
        seed_everything(self.seed, position)
        return self.mapper(self.records[index])


def stream_batches(
    dataset: SeededDataset, stream: BatchStream, workers: int = 0
) -> Iterator[list[Any]]:
    """Iterate over batches as lists of examples, made by ``workers`` processes (0: this one)."""
    options = {"num_workers": workers, "worker_init_fn": _ignore_interrupts}
    return iter(
        WorkerBatches(DataLoader(dataset, batch_sampler=stream, collate_fn=list, **options))
    )


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches all processes of a terminal; without workers, training cannot end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
