"""Training of two models over one trunk: one on objects, one on label maps of the same images."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.stream import BatchStream, SeededDataset, stream_batches
from ..highway.config import HighwayConfig
from ..swin.shared_passes import share_passes
from ..utils.counts import counted
from ..utils.errors import UserError
from ..utils.progress import Progress
from .data import Dataset, Record, Target, flip_target, read_record_image, to_tensor
from .options import DEFAULTS, INSTANCES, LABELS, READING, TASKS, anywhere
from .start import Run, build_trainer, open_run
from .trainer import STATE, Trainer, stop_signals

# The options of one task only.
_OWN = {
    INSTANCES: {
        *("annotations", "val_annotations", "model", "max_detections"),
        *(name for name in READING if name != "skip_missing"),
    },
    LABELS: {"labels", "val_labels", "classes"},
}
_VALIDATED_BY = {INSTANCES: "val_annotations", LABELS: "val_labels"}


def wants_together(given: Mapping[str, Any], folder: Path, resume: bool) -> bool:
    """Return whether the user's options ask for both tasks, or a run of both is to be resumed."""
    if resume:
        single, *parts = ((place / STATE).is_file() for place in places_of(folder))
        if single or any(parts):
            return not single
    return bool(given.get("annotations") and given.get("labels"))


def places_of(folder: Path) -> list[Path]:
    """Return the folder of a single run, and those of two that train together."""
    return [folder, *(folder / task for task in TASKS)]


def split_options(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each task.

    Raises:
        UserError: the options allow no common trunk.
    """
    if given.get("model") == "semantic_fpn":
        raise UserError(
            "--model semantic_fpn with --annotations and --labels: expected the model for the "
            "objects, such as mask_rcnn; the label maps get a semantic_fpn of their own"
        )
    tasks = {}
    for task, other in ((INSTANCES, LABELS), (LABELS, INSTANCES)):
        own = {name: value for name, value in given.items() if name not in _OWN[other]}
        if _VALIDATED_BY[task] not in given and _VALIDATED_BY[other] in given:
            own.pop("val_images", None)  # they are for the other task
        tasks[task] = own
    return tasks


def start_together(
    given: dict[str, Any],
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    **options: Any,
) -> "TogetherTrainer":
    """Open the data of both tasks, build their models over one trunk, and return their trainer.

    See :func:`e3va.torchvision.start.start_training` for the arguments. Each task has a folder of
    its name in ``folder``. If one of them was stopped before its first checkpoint, it starts anew.
    """
    given = {name: anywhere(name, value) for name, value in given.items()}
    if (folder / STATE).exists():
        raise UserError(
            f"{folder} already holds the run of one model ({STATE}): give another --output"
        )
    runs: dict[str, Run] = {}
    saved = [task for task in TASKS if resume and (folder / task / STATE).is_file()]
    if resume and not saved:
        raise UserError(
            f"--resume: {folder} holds no run of {' and '.join(TASKS)}; expected the --output "
            "folder of an earlier run"
        )
    # A saved run has the options of both.
    for task in sorted(TASKS, key=lambda name: name not in saved):
        print(f"{task}:")
        if task in saved:
            own = split_options(given)[task]
            runs[task] = open_run(own, folder / task, device, resume=True)
            if not runs[task].together:
                raise UserError(
                    f"the run in {folder / task} was not trained together with another: continue "
                    f"it with --output {folder / task} --resume"
                )
        else:
            before = next((run.together for run in runs.values() if saved), {})
            if before:
                print("it has no checkpoint: it starts anew")
                _check_same(given, before, folder)
            own = split_options(before or given)[task]
            runs[task] = open_run(own, folder / task, device)
            runs[task].together = before or dict(given)
        _check_highway(runs[task].config.highway)
    runs = {task: runs[task] for task in TASKS}
    print(keep_common_images(runs))
    trainers: dict[str, Trainer] = {}
    for task, run in runs.items():
        trunk = trainers[INSTANCES].trunk if trainers else None
        trainers[task] = build_trainer(run, trunk=trunk, **options)
    return TogetherTrainer(trainers)


def _check_same(given: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    """Check that a run is continued with its own options."""
    for name, value in given.items():
        own = before.get(name, DEFAULTS[name])
        if value != own:
            raise UserError(
                f"--resume with --{name.replace('_', '-')} {value}, but the run in {folder} has "
                f"{'the default' if own is None else own}: leave the option out"
            )


def _check_highway(highway: HighwayConfig) -> None:
    if highway.train_trunk or highway.inside:
        what = f"the recipe {highway.recipe}" if highway.train_trunk else "adapters in the trunk"
        raise UserError(
            f"--annotations and --labels with {what}: expected a highway, because both tasks share "
            "a frozen trunk; change it, or give one of the two"
        )


def keep_common_images(runs: Mapping[str, Run]) -> str:
    """Let all runs train on the images that all of them have, in one order; return a line on them.

    Raises:
        UserError: there are no such images.
    """
    records = [
        {os.path.abspath(record["path"]): record for record in run.data.training.records}
        for run in runs.values()
    ]
    common = [path for path in records[0] if all(path in own for own in records)]
    if not common:
        raise UserError(
            f"none of the {len(records[0])} images with objects has a label map: expected "
            "--annotations and --labels of the same images"
        )
    for run, own in zip(runs.values(), records, strict=True):
        training = replace(run.data.training, records=[own[path] for path in common])
        run.data = replace(run.data, training=training)
        if len(own) > len(common):
            run.note = f"{len(common)} of the images were trained on"
    left_out = [
        f"{counted(len(own) - len(common), 'other image')} of the {what}"
        for own, what in zip(records, ("objects", "label maps"), strict=True)
        if len(own) > len(common)
    ]
    text = f"{counted(len(common), 'image')} to train both models on"
    return text + (f", without {' and '.join(left_out)}" if left_out else "")


@dataclass
class TogetherMapper:
    """Function that reads an image once and its target of each data set, flipped as one."""

    datasets: Mapping[str, Dataset]

    def __call__(self, records: Mapping[str, Record]) -> tuple[Tensor, dict[str, Target]]:
        """Return the image [3, H, W] and the targets by name."""
        image = to_tensor(read_record_image(next(iter(records.values()))))
        targets = {
            name: dataset.read_target(records[name]) for name, dataset in self.datasets.items()
        }
        if torch.rand(1) >= 0.5:  # as TrainMapper
            return image, targets
        width = image.shape[-1]
        return image.flip(-1), {name: flip_target(own, width) for name, own in targets.items()}


@dataclass(eq=False)
class TogetherTrainer:
    """Trainer of several models over one trunk, which runs once for each batch.

    Each model has its own optimizer, loss and folder. It ends with the weights of a training of its
    own on the same images, because the tasks have only the trunk in common, which is frozen, and
    every random choice is seeded by the step.

    Args:
        trainers: trainers by name whose models share a trunk, with equal steps, batch sizes and
            seeds, and with records of the same images.
    """

    trainers: dict[str, Trainer]

    @property
    def step(self) -> int:
        """Number of steps that all models have done; a killed run may have saved one of them."""
        return min(trainer.step for trainer in self.trainers.values())

    def train(self) -> None:
        """Train all models to the last step and save them, see :meth:`Trainer.train`."""
        trainers = self.trainers.values()
        try:
            for name, trainer in self.trainers.items():
                trainer.say = partial(_say, name, print)
                trainer.begin()
            batches, last = self._batches(), next(iter(trainers)).settings.steps
            with Progress(self.step, last) as progress, stop_signals() as received:
                for name, trainer in self.trainers.items():
                    trainer.say = partial(_say, name, progress.say)
                while self.step < last:
                    progress.step(self.step + 1, self._run_step(next(batches)))
                    if received:
                        self._save()
                        raise KeyboardInterrupt
            self._save()  # before the first one is scored, which may take long or fail
            for trainer in trainers:
                trainer.finish()
        finally:
            for trainer in trainers:
                trainer.lock.release()

    def _batches(self) -> Iterator[list[tuple[Tensor, dict[str, Target]]]]:
        datasets = {name: trainer.dataset for name, trainer in self.trainers.items()}
        columns = zip(*(dataset.records for dataset in datasets.values()), strict=True)
        records = [dict(zip(datasets, column, strict=True)) for column in columns]
        first = next(iter(self.trainers.values()))
        wide = [record["width"] > record["height"] for record in first.dataset.records]
        seed, size = first.settings.seed, first.settings.batch_size
        stream = BatchStream(wide, size, seed, start=self.step)
        mapped = SeededDataset(records, TogetherMapper(datasets), seed)
        try:
            yield from stream_batches(mapped, stream, first.workers)
        except UserError:  # an unreadable image
            self._save()
            raise

    def _run_step(self, batch: list[tuple[Tensor, dict[str, Target]]]) -> dict[str, str]:
        """Train one step of each model that has not done it; return what to show."""
        step, shown = self.step, {}
        todo = {name: trainer for name, trainer in self.trainers.items() if trainer.step == step}
        with share_passes(next(iter(todo.values())).trunk):
            for name, trainer in todo.items():
                trainer.train_step([(image, targets[name]) for image, targets in batch])
        for name, trainer in todo.items():
            trainer.show = lambda _, facts, name=name: shown.update({name: facts})
            trainer.after_step()
        losses = {f"loss of {name}": facts["loss"] for name, facts in shown.items()}
        return {**losses, "peak": next(iter(shown.values()))["peak"]}

    def _save(self) -> None:
        for trainer in self.trainers.values():
            if trainer.step:
                trainer.save()


def _say(name: str, say: Callable[[str], None], text: str) -> None:
    say(f"{name}: {text}")
