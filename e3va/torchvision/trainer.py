"""The training loop: resumable to the bit, along the highway alone."""

import contextlib
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.files import MODEL_FILE as ADAPTER
from ..adapter_files.files import recorded_origin, save_adapter
from ..data.stream import BatchStream, SeededDataset, stream_batches
from ..utils.atomic import atomic_open, remove_leftovers, save_atomically
from ..utils.errors import UserError
from ..utils.measure import MIB, count_parameters, parameter_table, peak_memory, track_saved_bytes
from ..utils.progress import Progress
from ..utils.seeding import seed_everything
from ..weights.checkpoint import load_file
from .data import Dataset, TrainMapper
from .description import about, whole_entry, why_no_adapter
from .evaluate import Scores
from .lean import prepare_model
from .models import ModelConfig, load_state, model_parts
from .settings import PRECISIONS, TrainSettings, parameter_groups, rate_factor

STATE, MODEL, METRICS, SUMMARY = "training.pth", "model.pth", "metrics.jsonl", "summary.json"
LOG_EVERY = 10  # steps


class Trainer:
    """Trains a model of this framework and writes what it did into a folder.

    ``model.pth``: the trained model; ``adapter_model.safetensors`` and ``adapter_config.json``: the
    same without its trunk; ``training.pth``: what ``--resume`` goes on from; ``metrics.jsonl``: a
    line of figures now and then; ``summary.json``: what it took.

    Args:
        model: of :func:`e3va.torchvision.build_model`, on its device.
        config: of the model; stored with it.
        settings: see there.
        dataset: to train on.
        folder: for the output; it is made.
        evaluate: gives the scores of the model on validation data; None for no evaluation.
        workers: processes that read images. They change nothing but the speed.
        data: stored in the checkpoint: where the data came from.
        tensorboard: a ``SummaryWriter``, or None.

    Raises:
        UserError: an unknown precision, or a folder that cannot be written.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        settings: TrainSettings,
        dataset: Dataset,
        folder: Path,
        *,
        evaluate: Callable[[], Scores] | None = None,
        workers: int = 0,
        data: dict[str, Any] | None = None,
        tensorboard: Any = None,
    ):
        if settings.precision not in PRECISIONS:
            raise UserError(f"precision {settings.precision!r}: expected one of {[*PRECISIONS]}")
        self.model, self.config, self.settings = model, config, settings
        self.dataset, self.folder, self.evaluate = dataset, make_folder(folder), evaluate
        self.workers, self.data, self.tensorboard = workers, data or {}, tensorboard
        self.device = next(model.parameters()).device
        self.trunk = model.backbone.bottom_up.trunk
        self.optimizer = torch.optim.AdamW(parameter_groups(model, settings))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.step = 0
        self.saved_bytes: int | None = None
        self.step_seconds: list[float] = []
        self.scores: Scores | None = None

    def train(self) -> None:
        """Prepare the model for its ``memory``, train to the last step, then save the model.

        Ctrl-C (or SIGTERM) ends the step, saves, and raises ``KeyboardInterrupt``.

        Raises:
            UserError: the loss is no longer finite; or an image cannot be read, which leaves a
                checkpoint of the steps before.
            TrunkNotFrozenError: a frozen trunk could change.
            KeyboardInterrupt: after a checkpoint has been written.
        """
        settings, last = self.settings, self.settings.steps
        prepare_model(self.model, mixed=PRECISIONS[settings.precision] is not None)
        print(f"What trains:\n{parameter_table(self.parameter_rows())}", flush=True)
        batches = self._batches()
        with Progress(self.step, last) as progress:
            self._progress = progress
            with _asked_to_stop() as asked:
                while self.step < last:
                    began = time.monotonic()
                    self._train_step(self._next(batches))
                    self.step_seconds.append(time.monotonic() - began)
                    self._after_step()
                    if asked:
                        self.save()
                        raise KeyboardInterrupt
        self.save()  # before the last evaluation, which may be interrupted
        if self.scores is None or not settings.eval_every or last % settings.eval_every:
            self._evaluate()
        self.save_model()
        self.save_summary()

    def parameter_rows(self) -> list:
        """Parameters and trained ones by part."""
        return count_parameters(self.model, model_parts(self.model))

    def _batches(self) -> Iterator[list]:
        wide = [record["width"] > record["height"] for record in self.dataset.records]
        settings = self.settings
        stream = BatchStream(wide, settings.batch_size, settings.seed, start=self.step)
        mapped = SeededDataset(self.dataset.records, TrainMapper(self.dataset), settings.seed)
        return stream_batches(mapped, stream, self.workers)

    def _next(self, batches: Iterator[list]) -> list:
        try:
            return next(batches)
        except UserError:  # an image that cannot be read: once it is replaced, the run can go on
            if self.step:
                self.save()
            raise

    def _train_step(self, batch: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
        # Random choices of the step: sampling, image sizes. They do not depend on the steps before.
        seed_everything("step", self.settings.seed, self.step)
        factor = rate_factor(self.step, self.settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        self._prove_frozen()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise UserError(
                f"the loss is {total.item()} at step {self.step}: give a lower --lr"
                + (" or --precision fp32" if self.settings.precision == "fp16" else "")
            )
        self.scaler.scale(total).backward()
        self._prove_frozen()
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.losses = {name: float(loss.detach()) for name, loss in losses.items()}

    def _prove_frozen(self) -> None:
        if self.trunk.frozen:  # method="full" asks for a trunk that is not
            self.trunk.check_frozen(self.optimizer)

    def _losses(self, batch: list) -> dict[str, Tensor]:
        images = [image.to(self.device) for image, _ in batch]
        targets = [{k: v.to(self.device) for k, v in target.items()} for _, target in batch]
        dtype = PRECISIONS[self.settings.precision]
        autocast = torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()
        if self.saved_bytes is not None:
            with autocast:
                return self.model(images, targets)
        with track_saved_bytes(self.model, model_parts(self.model)) as saved, autocast:
            losses = self.model(images, targets)
        self.saved_bytes = saved.total
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters()) / MIB
        self._progress.say(
            f"A step on {len(batch)} images keeps {saved} for the backward pass, besides "
            f"{weights:.1f} MiB of weights"
        )
        return losses

    def _after_step(self) -> None:
        settings, seconds = self.settings, self.step_seconds[-20:]
        total = sum(self.losses.values())
        rate = settings.batch_size * len(seconds) / sum(seconds)
        facts = {"loss": f"{total:.3f}", "images/s": f"{rate:.1f}"}
        self._progress.step(self.step, {**facts, "peak": f"{peak_memory():,.0f} MiB"})
        if self.step % LOG_EVERY == 0 or self.step in (1, settings.steps):
            self._log({"loss": total, **self.losses, "images_per_second": rate})
        if settings.checkpoint_every and self.step % settings.checkpoint_every == 0:
            self.save()
        if settings.eval_every and self.step % settings.eval_every == 0:
            self._evaluate()

    def _log(self, values: dict[str, float]) -> None:
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")
        for name, value in values.items() if self.tensorboard else ():
            self.tensorboard.add_scalar(name, value, self.step)
        if self.tensorboard:
            self.tensorboard.flush()

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        self.scores = self.evaluate()
        said = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.values.items())
        self._progress.say(f"after step {self.step}: {said}")
        self._log(self.scores.values)

    def save(self) -> None:
        """Write ``training.pth``."""
        data = {
            **self._described(),
            "settings": asdict(self.settings),
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_atomically(data, self.folder / STATE)

    def save_model(self) -> None:
        """Write ``model.pth``, and beside it the adapter alone where there is one."""
        scores = self.scores.values if self.scores else {}
        save_atomically(
            {**self._described(), "step": self.step, "scores": scores}, self.folder / MODEL
        )
        reason = why_no_adapter(self.config)
        if reason:
            print(f"no adapter files are written: {reason}")
            return
        save_adapter(self.model, self.folder, **self._about())
        size = (self.folder / ADAPTER).stat().st_size / MIB
        print(f"wrote {self.folder / ADAPTER} ({size:.1f} MiB): the same without its trunk")

    def save_summary(self) -> None:
        """Write ``summary.json``: parameters by part, bytes kept by a step, its median seconds."""
        parts = {r.part: {"all": r.total, "trained": r.trained} for r in self.parameter_rows()}
        summary = {
            "steps": self.step,
            "parameters": parts,
            "kept_for_backward_bytes": self.saved_bytes,
            "seconds_a_step": statistics.median(self.step_seconds) if self.step_seconds else None,
            "peak_memory_mib": peak_memory(),
            "scores": self.scores.values if self.scores else {},
        }
        with atomic_open(self.folder / SUMMARY, "w") as file:
            json.dump(summary, file, indent=1)

    def _described(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "config": self.config.to_dict(),
            "data": self.data,
            **whole_entry(self.model, self._about()),
        }

    def _about(self) -> dict[str, Any]:
        scores = self.scores.values if self.scores else {}
        return about(self.config, self.dataset.summary, self.step, scores)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            UserError: it does not fit.
        """
        source = str(self.folder / STATE)
        load_state(self.model, state["model"], source)
        # The weights may have been rounded since they were loaded, and no longer tell.
        self.trunk.origin = recorded_origin(state)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"] if self.scaler.is_enabled() else {})
            self.step = int(state["step"])
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{source} cannot be gone on from: {error}") from None
        _drop_lines_after(self.folder / METRICS, self.step)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that fills when the process is interrupted or asked to end.

    A step that is cut off in the middle could not be gone on from, so it is finished first. A
    second signal has its usual effect at once.
    """
    asked: list[int] = []
    before: dict[int, Any] = {}

    def take_note(number: int, _: Any) -> None:
        asked.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, take_note)
    except ValueError:
        pass  # not the main thread, which alone gets signals
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_state(folder: Path) -> dict[str, Any]:
    """What :meth:`Trainer.save` wrote into ``folder``.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"--resume: no {path}; expected the --output folder of an earlier run")
    state = load_file(path)
    missing = {"model", "config", "settings", "step", "optimizer", "scaler", "data"} - state.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by e3va")
    return state


def make_folder(folder: Path) -> Path:
    """Make an output folder.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made: {error.strerror}") from None
    remove_leftovers(folder)
    return folder


def _drop_lines_after(path: Path, step: int) -> None:
    """A killed run has logged steps that its checkpoint does not know and that will come again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return math.inf  # half a line of a process that was killed
