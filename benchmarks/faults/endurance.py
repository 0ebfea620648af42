"""Thousands of predictions, steps and evaluations in one process; threads on one model."""

import contextlib
import gc
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from gpu.subjects import SIZE

from e3va.torchvision.data import read_image, to_tensor
from e3va.torchvision.loading import load_model
from e3va.torchvision.transform import detect

from .outcome import Campaign, Outcome
from .runs import Forked, Training, draw_data

PREDICTIONS, STEPS, EVALUATIONS, THREADS = 2000, 1000, 50, 8
MOST_GROWTH = 0.01  # of the resident memory after the first tenth
PATIENCE = 3600


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Repeat each piece of work in a process of its own."""
    data = draw_data(campaign.folder / "data")
    for framework in campaign.frameworks:
        training = Training(framework, data, campaign.folder / framework, steps=3).fresh()
        process = Forked(training.run, campaign.folder / "log")
        if process.wait(PATIENCE):
            yield Outcome(f"training for {framework}", process.said()[-300:])
            continue
        works = {
            f"{len(campaign.tries(PREDICTIONS))} predictions": _predictions,
            f"{THREADS} threads on one model": _threads,
            f"{len(campaign.tries(STEPS))} training steps": _steps,
        }
        if framework == "torchvision":
            works[f"{len(campaign.tries(EVALUATIONS))} evaluations"] = _evaluations
        for name, work in works.items():
            found = campaign.folder / "found.json"
            found.unlink(missing_ok=True)

            def do(work=work, training=training, found=found) -> int:
                found.write_text(json.dumps(work(campaign, training)))
                return 0

            process = Forked(do, campaign.folder / "log")
            process.wait(PATIENCE)
            process.end()
            what = f"{name}, {framework}"
            if not found.is_file():
                yield Outcome(what, f"status {process.status}: {process.said().strip()[-200:]}")
                continue
            lost, note = json.loads(found.read_text())
            yield Outcome(what, lost, note)


def resident() -> int:
    """Return the bytes of resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def growth(work: Callable[[int], object], count: int) -> tuple[str, str]:
    """Repeat ``work``; return what is lost and a note about the memory."""
    for number in range(count):
        work(number)
        if number == count // 10:
            gc.collect()
            early = resident()
    gc.collect()
    grown = resident() / early - 1
    note = f"{early / 2**20:.0f} MiB after a tenth, then {grown:+.2%}"
    return (f"memory grows: {note}" if grown > MOST_GROWTH else ""), note


def _predictor(training: Training) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from an image [3, H, W] to its label map."""
    if training.framework == "torchvision":
        model, _ = load_model(training.output / "model.pth")
        model.eval()
        return lambda image: detect(model, image)["labels"]
    from e3va.detectron2 import LazyPredictor

    files = training.output / "config.yaml", training.output / "model_final.pth"
    predictor = LazyPredictor(*files)
    return lambda image: predictor((255 * image).byte().permute(1, 2, 0).numpy())["sem_seg"]


def _images(training: Training) -> list[torch.Tensor]:
    paths = sorted((training.data / "images").iterdir())
    return [to_tensor(read_image(path)) for path in paths]


def _predictions(campaign: Campaign, training: Training) -> tuple[str, str]:
    predict, images = _predictor(training), _images(training)
    expected = [predict(image) for image in images]
    wrong = 0

    def one(number: int) -> None:
        nonlocal wrong
        place = number % len(images)
        height = SIZE[0] - 8 * (number % 3)  # sizes change, as a user's images do
        if height == SIZE[0]:
            wrong += not torch.equal(predict(images[place]), expected[place])
        else:
            predict(images[place][:, :height])

    lost, note = growth(one, len(campaign.tries(PREDICTIONS)))
    return (f"{wrong} predictions differ" if wrong else lost), note


def _threads(campaign: Campaign, training: Training) -> tuple[str, str]:
    predict, images = _predictor(training), _images(training)
    expected = [predict(image) for image in images]
    count = 40 * THREADS
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda n: predict(images[n % len(images)]), range(count)))
    same = [torch.equal(one, expected[n % len(images)]) for n, one in enumerate(found)]
    return ("" if all(same) else f"{same.count(False)} of {count} predictions differ"), ""


def _steps(campaign: Campaign, training: Training) -> tuple[str, str]:
    """Train on; memory is read in each step."""
    from dataclasses import replace

    count = len(campaign.tries(STEPS))
    sizes: list[int] = []
    own = replace(
        training, output=training.output.with_name("long"), steps=count, more=_rarely(training)
    )
    with _watched(training.framework, sizes), contextlib.redirect_stdout(io.StringIO()):
        own.run()
    early, late = sizes[count // 10], sizes[-1]
    note = f"{early / 2**20:.0f} MiB after a tenth, then {late / early - 1:+.2%}"
    return (f"memory grows: {note}" if late / early - 1 > MOST_GROWTH else ""), note


def _rarely(training: Training) -> tuple[str, ...]:
    """Return options for few checkpoints."""
    if training.framework == "torchvision":
        return ("--checkpoint-every", "0")
    return ("train.checkpointer.period=100000",)


@contextlib.contextmanager
def _watched(framework: str, sizes: list[int]) -> Iterator[None]:
    """Append the resident memory after each step."""
    from unittest import mock

    if framework == "torchvision":
        from e3va.torchvision.trainer import Trainer as owner
    else:
        from e3va.detectron2.trainer import HighwayTrainer as owner
    before = owner.after_step

    def after(self) -> None:
        before(self)
        sizes.append(resident())

    with mock.patch.object(owner, "after_step", after):
        yield


def _evaluations(campaign: Campaign, training: Training) -> tuple[str, str]:
    from e3va.cli.main import main as e3va

    options = ["--images", training.data / "images", "--labels", training.data / "labels"]
    words = [str(w) for w in ("eval", training.output / "model.pth", *options)]
    scores = set()

    def one(_: int) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            if e3va(words):
                raise RuntimeError(said.getvalue())
        scores.add(said.getvalue())

    lost, note = growth(one, len(campaign.tries(EVALUATIONS)))
    return ("scores differ between evaluations" if len(scores) > 1 else lost), note
