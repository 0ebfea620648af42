"""An endless stream of training batches, the n-th of which depends on the seed and n alone.

The order of images is a function of the seed, and random choices are seeded from the seed and a
place in that order, so that a resumed run sees what an uninterrupted one would have seen, whatever
the number of worker processes.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.seeding import derive_seed, seed_everything


class BatchStream(Sampler):
    """An endless stream of batches of (place in the stream, index of the image).

    Images come in epochs, each a permutation. A batch holds images of one orientation, so that
    padding stays small; an image that must wait for others of its orientation comes in a later
    batch. Several processes share each batch of all of them in consecutive pieces, so that it is
    the same whatever their number.

    Args:
        wide: for each image, whether it is wider than high.
        batch_size: images in a batch of this process.
        seed: of the permutations.
        start: how many batches to pass over.
        rank, world: which of how many processes this is.
    """

    def __init__(
        self,
        wide: Sequence[bool],
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.wide = wide
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        whole, first = self.batch_size * self.world, self.batch_size * self.rank
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        done = 0
        for place, index in self._places():
            bucket = waiting[self.wide[index]]
            bucket.append((place, index))
            if len(bucket) == whole:
                if done >= self.start:
                    yield bucket[first : first + self.batch_size]
                bucket.clear()
                done += 1

    def _places(self) -> Iterator[tuple[int, int]]:
        size, epoch = len(self.wide), 0
        while True:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(size, generator=generator).tolist()
            for offset, index in enumerate(order):
                yield epoch * size + offset, index
            epoch += 1


class SeededDataset(Dataset):
    """Maps records to examples; the mapper's random choices follow from the seed and the place."""

    def __init__(self, records: Sequence[Any], mapper: Callable[[Any], Any], seed: int):
        self.records = records
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        place, index = key
        seed_everything(self.seed, place)
        return self.mapper(self.records[index])


def stream_batches(
    dataset: SeededDataset, stream: BatchStream, workers: int = 0
) -> Iterator[list[Any]]:
    """The stream's batches, as lists of examples, made by ``workers`` processes (0: this one)."""
    return iter(
        DataLoader(
            dataset,
            batch_sampler=stream,
            num_workers=workers,
            collate_fn=_identity,
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )
    )


def _leave_interrupts_to_the_main_process(_: int) -> None:
    # Ctrl-C reaches every process of a terminal; one that has no workers left cannot end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(batch: list[Any]) -> list[Any]:
    return batch
