"""A training data loader with an n-th batch that depends only on the seed and n."""

from collections.abc import Callable, Iterator, Sequence

from detectron2.data.common import DatasetFromList
from detectron2.utils import comm

from ..data.stream import BatchStream, SeededDataset, stream_batches
from ..utils.errors import UserError


class TrainLoader:
    """Endless stream of batches of training examples; :meth:`seek` resumes it.

    Args:
        dataset: dataset dicts in Detectron2's format, with ``height`` and ``width``.
        mapper: function from a dict to a training example.
        total_batch_size: number of images in a batch of all processes together.
        num_workers: number of worker processes.
        seed: a whole number ≥ 0.

    Raises:
        UserError: the processes cannot share the batch evenly, there are no data, or seed < 0.
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
        self.mapper = mapper
        self.batch_size = total_batch_size // world
        self.num_workers = num_workers
        self.seed = seed
        self.start = 0
        self._set(dataset)

    def _set(self, dataset: Sequence[dict]) -> None:
        records = DatasetFromList(dataset, copy=False)
        self.dataset = SeededDataset(records, self.mapper, self.seed)
        self.wide = [record["width"] > record["height"] for record in dataset]
        self.images = len(dataset)
        self.objects = sum(len(record.get("annotations", ())) for record in dataset)

    @property
    def files(self) -> list[str]:
        """Paths of the images, in order."""
        return [record["file_name"] for record in self.dataset.records]

    def keep(self, places: Sequence[int]) -> None:
        """Keep only the images at these places of the data set, in this order."""
        self._set([self.dataset.records[place] for place in places])

    def seek(self, iteration: int) -> None:
        """Start the next :func:`iter` with the batch of this iteration."""
        self.start = iteration

    def __iter__(self) -> Iterator[list[dict]]:
        place = (comm.get_rank(), comm.get_world_size())
        stream = BatchStream(self.wide, self.batch_size, self.seed, self.start, *place)
        return stream_batches(self.dataset, stream, self.num_workers)
