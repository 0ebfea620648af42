"""The target tasks: drawn and real; boxes, instances and label maps; few images and many."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import land
import things

from e3va.torchvision.data import Dataset

from . import loaders
from .loaders import SOURCE_HELP, Sources, check_source

__all__ = ["SOURCE_HELP", "TASKS", "Sources", "Task", "available", "draw"]

THINGS_SPLITS = {"train": 300, "val": 40, "test": 100}
LAND_SPLITS = {"train": 24, "val": 24, "test": 60}
DRAWN_SIZE = 128  # pixels


@dataclass(frozen=True)
class Task:
    """A target task.

    Attributes:
        title: description for people.
        model: key of :data:`e3va.torchvision.models.MODELS`.
        metric: name of the score that is compared.
        size: shorter side of images, see :class:`e3va.torchvision.models.ModelConfig`.
        max_size: largest longer side of images.
        batch_size: images in a step.
        source: field of :class:`Sources` that the task needs.
        load: function (sources, split) → data set; the splits are train, val and test.
        detections: largest number of detections in an image.
    """

    title: str
    model: str
    metric: str
    size: int
    max_size: int
    batch_size: int
    source: str
    load: Callable[[Sources, str], Dataset]
    detections: int = 100

    @property
    def kind(self) -> str:
        """The kind of labels; a method has one learning rate for each kind."""
        return "label maps" if self.metric == "mIoU" else "boxes and masks"


def draw(folder: Path) -> None:
    """Draw the data of the drawn tasks, once; the file ``complete`` is written last."""
    done = folder / "complete"
    if not done.exists():
        things.draw_data(folder / "things", THINGS_SPLITS, DRAWN_SIZE)
        land.draw_data(folder / "land", LAND_SPLITS, DRAWN_SIZE)
        done.touch()


BOXES = {"model": "faster_rcnn", "metric": "AP box"}
INSTANCES = {"model": "mask_rcnn", "metric": "AP mask"}
LABELS = {"model": "semantic_fpn", "metric": "mIoU"}
TASKS = {
    "things": Task(
        title="pen drawings, instances, 300 images",
        **INSTANCES,
        size=128,
        max_size=256,
        batch_size=4,
        source="drawn",
        load=loaders.load_things,
    ),
    "land": Task(
        title="drawn aerial views, labels, 24 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="drawn",
        load=loaders.load_land,
    ),
    "nuts": Task(
        title="photographs of fruit, instances, 8 images",
        **INSTANCES,
        size=192,
        max_size=320,
        batch_size=2,
        source="photos",
        load=loaders.load_photo_instances,
    ),
    "nuts labels": Task(
        title="photographs of fruit, labels, 8 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="photos",
        load=loaders.load_photo_labels,
    ),
    "streets": Task(
        title="street scenes, labels, 367 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="streets",
        load=loaders.load_streets,
    ),
    "cells": Task(
        title="photographs of blood cells, boxes, 100 images",
        **BOXES,
        size=160,
        max_size=256,
        batch_size=3,
        source="cells",
        load=loaders.load_cells,
    ),
    "nuclei": Task(
        title="micrographs of cell nuclei, instances, 120 images",
        **INSTANCES,
        size=224,
        max_size=352,
        batch_size=2,
        source="nuclei",
        load=loaders.load_nuclei,
        detections=200,  # a test image has up to 125 nuclei
    ),
}


def available(sources: Sources) -> dict[str, Task]:
    """Return the tasks that have data.

    Raises:
        UserError: a given folder does not exist or has another layout.
    """
    for name in SOURCE_HELP:
        folder = getattr(sources, name)
        if folder is not None:
            check_source(name, folder)
    return {name: task for name, task in TASKS.items() if getattr(sources, task.source)}
