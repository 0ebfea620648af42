"""The target tasks: drawn and real, instances and label maps, few images and many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import land
import things
from torch import Tensor

from e3va.data.coco import ReadOptions
from e3va.torchvision.data import Dataset, Record, Target, coco_dataset, label_dataset
from e3va.torchvision.semantic import IGNORED
from e3va.utils.errors import UserError

THINGS_SPLITS = {"train": 300, "val": 40, "test": 100}
LAND_SPLITS = {"train": 24, "val": 24, "test": 60}
DRAWN_SIZE = 128  # pixels
PHOTO_CLASSES = ("background", "date", "fig", "hazelnut")
STREET_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "cyclist"),
)


@dataclass(frozen=True)
class Sources:
    """Places of the data.

    Attributes:
        drawn: folder that :func:`draw` filled.
        photos: folder of few photographs, with ``train``, ``train.json`` and ``train_sem_seg``, and
            the same for ``val``; the classes are ``PHOTO_CLASSES``. None for no such data.
        streets: folder of many photographs, with ``train`` and ``trainannot``, and the same for
            ``val`` and ``test``, as CamVid is usually distributed (label 11: no class). None for no
            such data.
    """

    drawn: Path
    photos: Path | None = None
    streets: Path | None = None


SOURCE_HELP = {
    "photos": "few photographs, with polygons and label maps",
    "streets": "street scenes with label maps",
}


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
        load: function (sources, split) → data set.
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


def draw(folder: Path) -> None:
    """Draw the data of the drawn tasks, once; the file ``complete`` is written last."""
    done = folder / "complete"
    if not done.exists():
        things.draw_data(folder / "things", THINGS_SPLITS, DRAWN_SIZE)
        land.draw_data(folder / "land", LAND_SPLITS, DRAWN_SIZE)
        done.touch()


def subset(data: Dataset, places: Sequence[int]) -> Dataset:
    """Return the data set of some of the records."""
    records = [data.records[place] for place in places]
    return replace(data, records=records, coco=data.coco and replace(data.coco, images=records))


def split_photos(count: int, split: str) -> list[int]:
    """Return the places of a split: every third training photograph is for validation."""
    return [i for i in range(count) if (i % 3 == 2) == (split == "val")]


def _things(sources: Sources, split: str) -> Dataset:
    folder = sources.drawn / "things"
    return coco_dataset(
        str(folder / f"{split}.json"), str(folder / split), ReadOptions(training=split == "train")
    )


def _land(sources: Sources, split: str) -> Dataset:
    folder = sources.drawn / "land"
    return label_dataset(str(folder / split), str(folder / f"{split}_labels"), land.CLASSES)


def _photo_folder(split: str) -> str:
    return "val" if split == "test" else "train"  # the folder "val" holds the test photographs


def _photo_split(data: Dataset, split: str) -> Dataset:
    return data if split == "test" else subset(data, split_photos(len(data.records), split))


def _photo_instances(sources: Sources, split: str) -> Dataset:
    path = sources.photos / _photo_folder(split)
    return _photo_split(
        coco_dataset(f"{path}.json", str(path), ReadOptions(training=split == "train")), split
    )


def _photo_labels(sources: Sources, split: str) -> Dataset:
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


def _streets(sources: Sources, split: str) -> Dataset:
    path, void = sources.streets / split, len(STREET_CLASSES)
    data = label_dataset(str(path), f"{path}annot", (*STREET_CLASSES, "void"))
    data = replace(data, classes=STREET_CLASSES, read_target=_Ignoring(data.read_target, void))
    # Neighboring frames look alike, so every third is enough for the scores.
    step = {"train": 1, "val": 3, "test": 3}[split]
    return subset(data, range(0, len(data.records), step))


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
        load=_things,
    ),
    "land": Task(
        title="drawn aerial views, labels, 24 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="drawn",
        load=_land,
    ),
    "nuts": Task(
        title="photographs of fruit, instances, 8 images",
        **INSTANCES,
        size=192,
        max_size=320,
        batch_size=2,
        source="photos",
        load=_photo_instances,
    ),
    "nuts labels": Task(
        title="photographs of fruit, labels, 8 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="photos",
        load=_photo_labels,
    ),
    "streets": Task(
        title="street scenes, labels, 367 images",
        **LABELS,
        size=128,
        max_size=256,
        batch_size=4,
        source="streets",
        load=_streets,
    ),
}


def available(sources: Sources) -> dict[str, Task]:
    """Return the tasks that have data.

    Raises:
        UserError: a given folder does not exist or has another layout.
    """
    for name in ("photos", "streets"):
        folder = getattr(sources, name)
        if folder is not None and not (folder / "train").is_dir():
            raise UserError(f"--{name} {folder}: expected a folder that holds the folder 'train'")
    return {name: task for name, task in TASKS.items() if getattr(sources, task.source)}
