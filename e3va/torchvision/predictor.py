"""Predictions of many images: batches, half precision, tiles, and several images at once."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data.images import image_size, in_order, read_image
from ..swin.precision import DTYPES
from ..swin.shared_passes import share_passes
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError, check_choice
from ..utils.paths import free_name
from ..utils.progress import Progress
from .masks import Size
from .tiles import Found, Grid, LabelMerger, ObjectMerger, Tiling
from .transform import detect_batch

WORKERS = 4  # images or batches in work at once, at most
PIXELS = 48_000_000  # of the images in work at once, unless one has more
AHEAD = 8  # batches among whose images those of equal size are looked for


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted.

    Args:
        batch_size: largest number of images of equal size, or of tiles, in one call of the model.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for mixed precision.
        tiling: how images larger than a tile are cut; None to cut none.

    Raises:
        UserError: the batch size is below 1, or the precision is unknown.
    """

    batch_size: int = 1
    precision: str = "fp32"
    tiling: Tiling | None = None

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, DTYPES)
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1")


class Predictor:
    """Function from images to the models' results.

    Args:
        models: models in evaluation mode by their names; several share ``trunk``.
        threshold: smallest score of an object.
        options: batches, precision and tiles.
        trunk: trunk whose passes the models share; None for a model on its own.
        tell: function that gets the names of the models in each pass of the trunk.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        threshold: float,
        options: PredictOptions,
        trunk: SwinTrunk | None = None,
        tell: Callable[[list[list[str]]], None] | None = None,
    ):
        self.models, self.threshold, self.options = dict(models), threshold, options
        self.trunk, self.tell = trunk, tell
        parameter = next(next(iter(self.models.values())).parameters(), None)
        self.exported = parameter is None  # it runs in onnxruntime, which has its own threads
        self.device = torch.device("cpu") if self.exported else parameter.device
        if options.precision != "fp32":
            for model in self.models.values():
                _keep_coordinates(model)
        self._turn = threading.Lock() if self.device.type != "cpu" else nullcontext()

    def workers(self, count: int) -> int:
        """Return how many of ``count`` batches are worth being in work at once."""
        if self.exported:
            return 1
        if self.device.type != "cpu":  # it computes one batch while others are read and written
            return max(1, min(WORKERS, os.cpu_count() or 1, count))
        modes = set()
        if self.trunk is not None:  # each model sets the trunk to its own mode
            backbones = [model.backbone.bottom_up for model in self.models.values()]
            modes = {(own.trunk_precision, own.memory == "plain") for own in backbones}
        return 1 if len(modes) > 1 else max(1, min(WORKERS, torch.get_num_threads(), count))

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Found]]:
        """Return each model's results by its name, for images [3, H, W] uint8 of one size."""
        pixels = [image.to(self.device) for image in images]
        inputs = [v2.functional.to_dtype(own, torch.float32, scale=True) for own in pixels]
        dtype, results = DTYPES[self.options.precision], [{} for _ in images]
        mixed = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        shared = share_passes(self.trunk) if self.trunk is not None else nullcontext()
        with self._turn, mixed, shared as passes:
            for name, model in self.models.items():
                if passes is not None:
                    passes.reader = name
                found = detect_batch(model, inputs, [self.threshold] * len(inputs))
                for result, own in zip(results, found, strict=True):
                    result[name] = own
            if self.tell and passes is not None:
                self.tell(passes.readers)
        return results

    def predict_tiles(self, image: Tensor) -> dict[str, Found]:
        """Return each model's results for an image [3, H, W] uint8 that is cut into tiles.

        Label maps are uint8.
        """
        grid, size = Grid(self.options.tiling, image.shape[-2:]), self.options.batch_size
        mergers: dict[str, LabelMerger | ObjectMerger] = {}
        batches = [grid.tiles[n : n + size] for n in range(0, len(grid.tiles), size)]

        def predict(tiles: list) -> list[dict[str, Found]]:
            return self.predict([image[tile.place] for tile in tiles])

        with split_threads(self.workers(len(batches))) as workers:
            index = 0
            for results in in_order(predict, batches, workers):
                for result in results:
                    for name, found in result.items():
                        kind = ObjectMerger if "boxes" in found else LabelMerger
                        mergers.setdefault(name, kind(grid)).add(index, found)
                    index += 1
        return {name: merger.finish() for name, merger in mergers.items()}


def _keep_coordinates(model: nn.Module) -> None:
    """Let torchvision's heads compute boxes in float32 under autocast.

    They take the type of the features for anchors, and that of the offsets for boxes. In half
    precision, coordinates would lose whole pixels.
    """
    heads, rpn = getattr(model, "roi_heads", None), getattr(model, "rpn", None)
    names = [(model, "backbone"), (rpn, "head")]
    names += [(heads, "box_predictor"), (heads, "mask_predictor")]
    for part in (getattr(owner, name, None) for owner, name in names):
        for module in part if isinstance(part, nn.ModuleList) else [part]:
            if module is not None:
                module.register_forward_hook(lambda _, inputs, output: _to_float(output))


def _to_float(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_float(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_to_float(own) for own in value]
    return value.float()


@contextmanager
def split_threads(workers: int) -> Iterator[int]:
    """Divide torch's threads among workers that start in the block; yield their number.

    Two images on a core each are faster than one after another on both cores: parts of the work
    run on one core only, and the threads of an operator wait for each other.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield workers
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Photo:
    """An image that was read.

    Attributes:
        number: place among all images, from 1.
        path: path of its file.
        name: name for the files of its results.
        pixels: pixels [3, H, W] uint8.
    """

    number: int
    path: Path
    name: str
    pixels: Tensor

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return tuple(self.pixels.shape[-2:])


Outcome = TypeVar("Outcome")
Item = tuple[int, Path, str]


def for_each_image(
    images: Sequence[Path],
    folder: Path,
    predictor: Predictor,
    write: Callable[[Photo, dict[str, Found]], Outcome],
    add: Callable[[Outcome], str],
) -> list[str]:
    """Read and predict images, several at once; return one line for each unreadable one.

    Args:
        images: paths of the images.
        folder: folder of the pictures, for the lines that are printed.
        predictor: models.
        write: function that writes the files of an image; several may run at once.
        add: function that takes what ``write`` returns, one image after another, and says what was
            found.
    """
    tiling, taken = predictor.options.tiling, set()
    items = [(n, path, free_name(path, ".png", taken)) for n, path in enumerate(images, 1)]
    # With tiles, one image at a time is in work, and its tiles are computed at once.
    workers = 1 if tiling else predictor.workers(len(items))
    batches = _batches(items, 1 if tiling else predictor.options.batch_size)
    room, failed, done = _Room(PIXELS), [], 0

    def work(batch: list[Item]) -> list[tuple[Path, str, Outcome | None, str]]:
        with room.hold(sum(_pixels(path) for _, path, _ in batch)):
            return list(_predict_batch(batch, predictor, write))

    with (
        Progress(0, len(items), unit="image", what="predicting") as progress,
        split_threads(workers),
    ):
        for outcomes in in_order(work, batches, workers):
            for path, name, outcome, error in outcomes:
                done += 1
                if error:
                    failed.append(error)
                else:
                    progress.say(f"{path}: {add(outcome)} -> {folder / name}")
                    progress.step(done, {})
    return failed


def _predict_batch(
    batch: list[Item], predictor: Predictor, write: Callable
) -> Iterator[tuple[Path, str, Any, str]]:
    """Yield path, name, result of ``write``, and error of each image of a batch."""
    photos = []
    for number, path, name in batch:
        try:
            pixels = v2.functional.pil_to_tensor(read_image(path))
            photos.append(Photo(number, path, name, pixels))
        except UserError as error:
            yield path, name, None, error.line
    if not photos:
        return
    tiling = predictor.options.tiling
    if tiling and tiling.is_larger(photos[0].size):
        found = [predictor.predict_tiles(photos[0].pixels)]
    else:
        found = predictor.predict([photo.pixels for photo in photos])
    for photo, own in zip(photos, found, strict=True):
        yield photo.path, photo.name, write(photo, own), ""


def _batches(items: Sequence[Item], most: int) -> Iterator[list[Item]]:
    """Yield images of equal size together, at most ``most``; those that follow are looked at."""
    if most == 1:
        yield from ([item] for item in items)
        return
    for first in range(0, len(items), AHEAD * most):
        same: dict[Size | None, list[Item]] = {}
        for item in items[first : first + AHEAD * most]:
            same.setdefault(_size(item[1]), []).append(item)
        for group in same.values():
            yield from (group[n : n + most] for n in range(0, len(group), most))


def _size(path: Path) -> Size | None:
    try:
        return image_size(path)
    except UserError:  # reading it says why
        return None


def _pixels(path: Path) -> int:
    width, height = _size(path) or (0, 0)
    return width * height


class _Room:
    """Limit of the pixels in work at once; an image with more waits until it is on its own."""

    def __init__(self, limit: int):
        self.limit, self.used, self._changed = limit, 0, threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self.used or self.used + pixels <= self.limit)
            self.used += pixels
        try:
            yield
        finally:
            with self._changed:
                self.used -= pixels
                self._changed.notify_all()
