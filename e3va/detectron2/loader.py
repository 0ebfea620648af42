"""A training data loader whose n-th batch depends on the seed and n alone.

Detectron2's own loader restarts its stream when a run is resumed. Here the order of images is a
function of the seed and the random choices of augmentation are a function of the seed and the
image's place in that order, so a resumed run sees what an uninterrupted one would have seen,
whatever the number of worker processes.
"""

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError


def seed_everything(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators from a tuple of whole numbers."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class BatchStream(Sampler):
    """An endless stream of batches of (place in the stream, index of the image).

    Images come in epochs, each a permutation; with several processes every one takes its turn. A
    batch holds images of one orientation, so that padding stays small; an image that must wait for
    others of its orientation comes in a later batch.

    Args:
        wide: for each image, whether it is wider than high.
        batch_size: images in a batch of this process.
        seed: of the permutations.
        start: how many batches to pass over.
    """

    def __init__(self, wide: Sequence[bool], batch_size: int, seed: int, start: int = 0):
        self.wide = wide
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        done = 0
        for place, index in self._places():
            bucket = waiting[self.wide[index]]
            bucket.append((place, index))
            if len(bucket) == self.batch_size:
                if done >= self.start:
                    yield list(bucket)
                bucket.clear()
                done += 1

    def _places(self) -> Iterator[tuple[int, int]]:
        rank, world, size = comm.get_rank(), comm.get_world_size(), len(self.wide)
        epoch = 0
        while True:
            word = np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(word))
            order = torch.randperm(size, generator=generator).tolist()
            for offset, index in enumerate(order):
                place = epoch * size + offset
                if place % world == rank:
                    yield place, index
            epoch += 1


class _SeededDataset(Dataset):
    def __init__(self, dicts: Sequence[dict], mapper: Callable[[dict], dict], seed: int):
        self.dicts = DatasetFromList(dicts, copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        place, index = key
        seed_everything(self.seed, place)
        return self.mapper(self.dicts[index])


class TrainLoader:
    """Batches of mapped dataset dicts, for ever; resumable with :meth:`seek`.

    Args:
        dataset: dataset dicts in Detectron2's format, with ``height`` and ``width``.
        mapper: dict → training example.
        total_batch_size: images in a batch of all processes together.
        num_workers: worker processes.
        seed: a whole number ≥ 0.

    Raises:
        UserError: the batch cannot be shared evenly by the processes, there is nothing to load,
            or the seed is negative.
    """

    def __init__(
        self,
        dataset: Sequence[dict],
        mapper: Callable[[dict], dict],
        total_batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
    ):
        world = comm.get_world_size()
        if total_batch_size < 1 or total_batch_size % world:
            raise UserError(
                f"dataloader.train.total_batch_size={total_batch_size}: expected a multiple of the "
                f"{world} processes"
            )
        if seed < 0:
            raise UserError(f"train.seed={seed}: expected a whole number ≥ 0; runs are repeatable")
        if not len(dataset):
            raise UserError("the training data set is empty: expected at least one image")
        self.dataset = _SeededDataset(dataset, mapper, seed)
        self.batch_size = total_batch_size // world
        self.num_workers = num_workers
        self.seed = seed
        self.wide = [record["width"] > record["height"] for record in dataset]
        self.start = 0

    def seek(self, iteration: int) -> None:
        """Let the next :func:`iter` begin with the batch of this iteration."""
        self.start = iteration

    def __iter__(self) -> Iterator[list[dict]]:
        stream = BatchStream(self.wide, self.batch_size, self.seed, self.start)
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=stream,
                num_workers=self.num_workers,
                collate_fn=_identity,
            )
        )


def _identity(batch: list[dict]) -> list[dict]:
    return batch
