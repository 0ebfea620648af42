"""One training of one method on one task, and its test."""

import contextlib
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from e3va.adapter_files.files import MODEL_FILE as ADAPTER
from e3va.torchvision.curves import read_metrics
from e3va.torchvision.evaluate import evaluate
from e3va.torchvision.models import (
    DEMO_TRUNK,
    ModelConfig,
    build_model,
    default_heads,
    load_pretrained,
    load_state,
    read_trunk,
)
from e3va.torchvision.trainer import (
    METRICS,
    MODEL,
    STATE,
    SUMMARY,
    DivergedError,
    Trainer,
    TrainSettings,
)
from e3va.utils.atomic import atomic_open, make_folder
from e3va.utils.seeding import seed_everything
from e3va.weights.checkpoint import load_file, model_state

from .candidates import ALL
from .methods import FRONT
from .tasks import TASKS, Sources

KNOWN = {**ALL, **{name: method for row in FRONT.values() for name, method in row.items()}}
HEADS_RATE = 2e-3  # of the light heads, see e3va.torchvision.models.HEADS
TEST = "test.json"


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        task: key of ``TASKS``.
        method: key of ``KNOWN``.
        rate: learning rate of the backbone's trained parameters, as a multiple of the heads' rate.
        seed: seed of the heads' first weights, the order of images and all other random choices.
        steps: number of updates.
        trunk: pretrained weights, see ``e3va train --trunk``.
        precision: see ``e3va train --precision``.
    """

    task: str
    method: str
    rate: float
    seed: int
    steps: int
    trunk: str = DEMO_TRUNK
    precision: str = "fp32"

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        words = (self.task, self.method, f"rate {self.rate:g}", f"seed {self.seed}")
        return "-".join((*words, f"steps {self.steps}")).replace(" ", "_")


def build(run: Run, classes: tuple[str, ...], category_ids=()) -> tuple[nn.Module, ModelConfig]:
    """Build a model that is ready to train; equal seeds give equal heads whatever the method."""
    task = TASKS[run.task]
    _, preset, _ = read_trunk(run.trunk)
    method = KNOWN[run.method].fitted(preset)
    config = ModelConfig(
        model=task.model,
        classes=classes,
        preset=preset,
        trunk=run.trunk,
        highway=method.highway,
        heads=default_heads(preset),
        size=task.size,
        max_size=task.max_size,
        category_ids=category_ids,
        detections=task.detections,
    )
    seed_everything("heads", run.seed)
    model = build_model(config)
    load_pretrained(model, run.trunk)
    if method.prepare:
        seed_everything("method", run.seed)
        method.prepare(model.backbone.bottom_up.trunk)
    return model, config


def validation(run: Run, folder: Path) -> list[tuple[int, float]]:
    """Return (step, score) of each validation."""
    metric = TASKS[run.task].metric
    return [(m["step"], m[metric]) for m in read_metrics(folder) if metric in m]


def train(run: Run, folder: Path, sources: Sources, device: str) -> None:
    """Train from the first step; validate after each quarter of the steps."""
    task, place = TASKS[run.task], torch.device(device)
    train_data, val_data = (task.load(sources, split) for split in ("train", "val"))
    model, config = build(run, train_data.classes, train_data.category_ids)
    settings = TrainSettings(
        steps=run.steps,
        batch_size=task.batch_size,
        lr=HEADS_RATE,
        adapter_lr=run.rate,
        trunk_lr=run.rate,
        precision=run.precision,
        seed=run.seed,
        checkpoint_every=0,
        eval_every=-(-run.steps // 4),
    )
    model.to(place)
    score = partial(evaluate, model, val_data, place)
    # A run that was stopped starts anew: its seconds and curves would have gaps.
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    with open(folder / "log.txt", "a", encoding="utf-8") as log, _output_to(log):
        try:
            Trainer(model, config, settings, train_data, folder, evaluate=score).train()
        except DivergedError:
            if run.seed:
                raise
            _write_as_failed(run, folder)
    (folder / STATE).unlink(missing_ok=True)


def _write_as_failed(run: Run, folder: Path) -> None:
    """Give a diverged run of the search the score 0, so that another learning rate is chosen."""
    with open(folder / METRICS, "a", encoding="utf-8") as file:
        print(json.dumps({"step": run.steps, TASKS[run.task].metric: 0.0}), file=file)
    with atomic_open(folder / SUMMARY, "w") as file:
        json.dump({"diverged": True}, file)


def drop_model(folder: Path) -> None:
    """Delete the files of a model that nothing reads again: there are hundreds of runs."""
    for name in (MODEL, ADAPTER):
        (folder / name).unlink(missing_ok=True)


def test(run: Run, folder: Path, sources: Sources, device: str) -> None:
    """Evaluate the trained model on the test split."""
    data = TASKS[run.task].load(sources, "test")
    model, _ = build(run, data.classes, data.category_ids)
    path = folder / MODEL
    load_state(model, model_state(load_file(path), str(path)), str(path))
    with open(folder / "log.txt", "a", encoding="utf-8") as log, _output_to(log):
        scores = evaluate(model.to(device), data, torch.device(device))
    with atomic_open(folder / TEST, "w") as file:
        json.dump({"scores": scores.values, "per_class": scores.per_class}, file)


@contextlib.contextmanager
def _output_to(log):
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield
