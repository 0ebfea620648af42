"""The training loop; a resumed run ends with the same bits as an uninterrupted one."""

import contextlib
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.files import MODEL_FILE as ADAPTER
from ..adapter_files.files import recorded_origin, save_adapter
from ..data.stream import BatchStream, SeededDataset, stream_batches
from ..utils.allocator import keep_freed_memory
from ..utils.atomic import atomic_open, make_folder, save_atomically, writing
from ..utils.errors import UserError
from ..utils.events import writing_events
from ..utils.lock import FolderLock
from ..utils.measure import MIB, count_parameters, parameter_table, peak_memory
from ..utils.progress import Progress
from ..utils.seeding import seed_everything
from ..utils.training import OptimizerStep, report_step
from ..weights.checkpoint import load_file
from .data import Dataset, Target, TrainMapper
from .description import adapter_fields, checkpoint_entry, why_no_adapter
from .evaluate import Scores
from .lean import prepare_model
from .models import ModelConfig, load_state, model_parts
from .settings import TrainSettings, parameter_groups, rate_schedule

STATE, MODEL, METRICS, SUMMARY = "training.pth", "model.pth", "metrics.jsonl", "summary.json"
LOG_EVERY = 10  # steps


class DivergedError(UserError):
    """The loss is infinite or not a number."""


@dataclass(eq=False)
class Trainer:
    """Trainer of a model of this framework; it writes the results into a folder.

    ``model.pth`` is the trained model; ``adapter_model.safetensors`` and ``adapter_config.json``
    are the same without its trunk; ``training.pth`` is the checkpoint from which a run is resumed;
    ``metrics.jsonl`` has a line of losses or scores every few steps; ``summary.json`` has the cost
    of the training.
    """

    model: nn.Module  # a model of build_model, on its device
    config: ModelConfig
    settings: TrainSettings
    dataset: Dataset
    folder: Path
    evaluate: Callable[[], Scores] | None = None  # returns the scores on validation data
    workers: int = 0  # number of processes that read images; it does not change the result
    data: dict[str, Any] = field(default_factory=dict)  # the data's origin, for the checkpoint
    tensorboard: Any = None  # a SummaryWriter
    scores: Scores = field(default_factory=Scores)  # scores after the newest step, if it has any

    def __post_init__(self) -> None:
        settings = self.settings
        self.device = next(self.model.parameters()).device
        self.trunk = self.model.backbone.bottom_up.trunk
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, settings))
        self.optimizer_step = OptimizerStep(
            self.optimizer, self.device, settings.precision, settings.clip_norm
        )
        self.lock = FolderLock(make_folder(self.folder))
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = rate_schedule(settings.steps)
        self.step = 0
        self.saved_bytes: int | None = None
        self.step_seconds: list[float] = []
        # Where progress (step, facts by name) and lines of text are shown.
        self.show: Callable[[int, dict[str, str]], None] = lambda step, facts: None
        self.say: Callable[[str], None] = print

    def train(self) -> None:
        """Prepare the model for its ``memory`` mode, train to the last step and save the model.

        A checkpoint is written before the ``UserError`` about an unreadable image, before the
        ``KeyboardInterrupt`` with which a step after SIGINT (Ctrl-C) or SIGTERM ends, and before
        every evaluation. The model is written before the last evaluation too, and then once more
        with its scores.
        """
        try:
            self.begin()
            batches, last = self._batches(), self.settings.steps
            with Progress(self.step, last) as progress, stop_signals() as received:
                self.show, self.say = progress.step, progress.say
                while self.step < last:
                    self.train_step(next(batches))
                    self.after_step()
                    if received:
                        self.save()
                        raise KeyboardInterrupt
            self.finish()
        finally:
            self.lock.release()

    def begin(self) -> None:
        """Prepare the model for its ``memory`` mode, and print what trains."""
        if self.device.type == "cpu":
            keep_freed_memory()
        prepare_model(self.model, mixed=self.optimizer_step.mixed)
        table = parameter_table(count_parameters(self.model, model_parts(self.model)))
        self.say(f"What trains:\n{table}")

    def finish(self) -> None:
        """Write the model, score it, and write the summary."""
        self.save()
        self.save_model()
        if self.evaluate:
            self._evaluate()
            self._write_model()
        self.save_summary()

    def _batches(self) -> Iterator[list]:
        wide = [record["width"] > record["height"] for record in self.dataset.records]
        settings = self.settings
        stream = BatchStream(wide, settings.batch_size, settings.seed, start=self.step)
        mapped = SeededDataset(self.dataset.records, TrainMapper(self.dataset), settings.seed)
        try:
            yield from stream_batches(mapped, stream, self.workers)
        except UserError:  # an unreadable image; once it is replaced, the run can be resumed
            if self.step:
                self.save()
            raise

    def train_step(self, batch: list[tuple[Tensor, Target]]) -> None:
        """Compute the gradient of a batch of images and targets, and update the weights."""
        began = time.monotonic()
        # Random choices of a step (sampling, image sizes) do not depend on the steps before it.
        seed_everything("step", self.settings.seed, self.step)
        factor = self.schedule(self.step / self.settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.model.train()
        self.trunk.check_frozen(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._losses(batch)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise DivergedError(
                f"the loss is {total.item()} at step {self.step}: give a lower --lr"
                + (" or --precision fp32" if self.settings.precision == "fp16" else "")
            )
        self.optimizer_step.backward(total)
        self.trunk.check_frozen(self.optimizer)
        self.optimizer_step.update()
        self.step += 1
        self.scores = Scores()  # those of an earlier step are not this model's
        self.losses = {name: float(loss.detach()) for name, loss in losses.items()}
        self.step_seconds.append(time.monotonic() - began)

    def _losses(self, batch: list) -> dict[str, Tensor]:
        images = [image.to(self.device) for image, _ in batch]
        targets = [{k: v.to(self.device) for k, v in target.items()} for _, target in batch]
        is_first = self.saved_bytes is None  # in this process
        report: Any = contextlib.nullcontext()
        if is_first:
            parts = model_parts(self.model)
            report = report_step(self.model, parts, len(batch), self.say)
        with report as saved, self.optimizer_step.autocast():
            losses = self.model(images, targets)
        if is_first:
            self.saved_bytes = saved.total
        return losses

    def after_step(self) -> None:
        """Show and log the step; save and evaluate if it is time to."""
        settings, seconds = self.settings, self.step_seconds[-20:]
        total = sum(self.losses.values())
        rate = settings.batch_size * len(seconds) / sum(seconds)
        facts = {"loss": f"{total:.3f}", "images/s": f"{rate:.1f}"}
        self.show(self.step, {**facts, "peak": f"{peak_memory():,.0f} MiB"})
        if self.step % LOG_EVERY == 0 or self.step in (1, settings.steps):
            self._log({"loss": total, **self.losses, "images_per_second": rate})
        saved, scored = (
            bool(every) and self.step % every == 0 and self.step < settings.steps
            for every in (settings.checkpoint_every, settings.eval_every * bool(self.evaluate))
        )
        if saved or scored:
            self.save()
        if scored:
            self._evaluate()

    def _log(self, values: dict[str, float | None]) -> None:
        path = self.folder / METRICS
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **values}) + "\n")
        if self.tensorboard:
            with writing_events(self.folder):
                for name, value in values.items():
                    if value is not None:
                        self.tensorboard.add_scalar(name, value, self.step)
                self.tensorboard.flush()

    def _evaluate(self) -> None:
        self.scores = self.evaluate()
        text = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.values.items())
        self.say(f"after step {self.step}: {text}")
        self._log(self.scores.to_json()["scores"])

    def save(self) -> None:
        """Write ``training.pth``."""
        data = {
            **self._model_data(),
            "settings": asdict(self.settings),
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.optimizer_step.scaler.state_dict(),
        }
        save_atomically(data, self.folder / STATE)

    def save_model(self) -> None:
        """Write ``model.pth`` and, where the model has an adapter, the adapter's files."""
        self._write_model()
        written = {MODEL: "the whole model"}
        reason = why_no_adapter(self.config)
        if not reason:
            written[ADAPTER] = "the adapter, which is the model without its trunk"
        for name, what in written.items():
            size = (self.folder / name).stat().st_size / MIB
            print(f"wrote {self.folder / name} ({size:.1f} MiB): {what}")
        if reason:
            print(f"no adapter files are written: {reason}")

    def _write_model(self) -> None:
        data = {**self._model_data(), "step": self.step, "scores": self.scores.values}
        save_atomically(data, self.folder / MODEL)
        if not why_no_adapter(self.config):
            save_adapter(self.model, self.folder, **self._adapter_fields())

    def save_summary(self) -> None:
        """Write ``summary.json``: parameters by part, memory and time of a step, scores."""
        rows = count_parameters(self.model, model_parts(self.model))
        summary = {
            "steps": self.step,
            "parameters": {r.part: {"all": r.total, "trained": r.trained} for r in rows},
            "kept_for_backward_bytes": self.saved_bytes,
            "seconds_a_step": statistics.median(self.step_seconds) if self.step_seconds else None,
            "peak_memory_mib": peak_memory(),
            **self.scores.to_json(),
        }
        with atomic_open(self.folder / SUMMARY, "w") as file:
            json.dump(summary, file, indent=1, allow_nan=False)

    def _adapter_fields(self) -> dict[str, Any]:
        summary, scores = self.dataset.summary, self.scores.values
        return adapter_fields(self.config, summary, self.step, scores)

    def _model_data(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "config": self.config.to_dict(),
            "data": self.data,
            **checkpoint_entry(self.model, self._adapter_fields()),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load the result of :func:`read_state`."""
        source = str(self.folder / STATE)
        load_state(self.model, state["model"], source)
        # The weights may have been rounded since they were loaded; the file records their origin.
        self.trunk.origin = recorded_origin(state)
        scaler = self.optimizer_step.scaler
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"] if scaler.is_enabled() else {})
            self.step = int(state["step"])
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{source} does not fit this run ({error}): start a new one") from None
        _drop_lines_after(self.folder / METRICS, self.step)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM in a list; a second signal has its usual effect."""
    received: list[int] = []
    before: dict[int, Any] = {}

    def restore(*arguments: Any) -> None:
        received.extend(arguments[:1])  # the signal's number; nothing at the end of the block
        for number, handler in before.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # only the main thread can receive signals
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, restore)
    try:
        yield received
    finally:
        restore()


def read_state(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run from its output folder."""
    path = folder / STATE
    if not path.is_file():
        raise UserError(f"--resume: no {path}; expected the --output folder of an earlier run")
    state = load_file(path)
    missing = {"model", "config", "settings", "step", "optimizer", "scaler", "data"} - state.keys()
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by e3va")
    return state


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint, which a killed run logged before it ended."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = (line for line in lines if line.endswith("}\n"))  # the last one may be cut
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")
