"""Hooks that Detectron2 lacks."""

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import (
    CommonMetricPrinter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..adapter_files.files import CONFIG_FILE, MODEL_FILE, save_adapter
from ..utils.atomic import WriteError, writing
from ..utils.errors import UserError
from ..utils.events import writing_events
from ..utils.measure import MIB, count_parameters, parameter_table, peak_memory
from ..weights.origin import UNKNOWN
from .backbone import model_parts

logger = logging.getLogger(__name__)


class TrainedPartsReport(HookBase):
    """Report of the parts of the model that train."""

    def before_train(self) -> None:
        """Log the table of parts, parameters and shares."""
        model = self.trainer.bare_model
        rows = count_parameters(model, model_parts(model))
        logger.info("What trains:\n%s", parameter_table(rows))
        backbone = [row for row in rows if row.part in ("trunk", "highway")]
        share = sum(row.trained for row in backbone) / sum(row.total for row in backbone)
        logger.info("Of the backbone %.2f%% trains", 100 * share)


class PeakMemory(HookBase):
    """Record of peak memory (MiB) as ``max_mem``, for all writers."""

    def after_step(self) -> None:
        """Record the peak up to this step."""
        self.trainer.storage.put_scalar("max_mem", peak_memory(), smoothing_hint=False)


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's console line, with peak memory also on devices other than CUDA."""

    def write(self) -> None:
        """Print the line, then the peak of the resident set if there is no CUDA device."""
        if self._last_write and self._last_write[0] == get_event_storage().iter:
            return  # a run that stops after a line; Detectron2 would divide by no iterations
        super().write()
        finished = get_event_storage().iter == self._max_iter
        if not finished and not torch.cuda.is_available():
            self.logger.info(" max_mem: %.0fM (resident set; no CUDA device)", peak_memory())


class MetricWriter(JSONWriter):
    """Detectron2's writer of a line of JSON for each step, in which null stands for no number.

    The AP of a class without objects is NaN, which JSON does not have.
    """

    def write(self) -> None:
        """Write the scalars that are new since the last call."""
        newest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        lines: dict[int, dict] = defaultdict(dict)
        for name, (value, step) in newest.items():
            if step > self._last_write:
                lines[step][name] = value if math.isfinite(value) else None
        with writing(self._file_handle.name):
            for step in sorted(lines):
                line = json.dumps({**lines[step], "iteration": step}, sort_keys=True)
                self._file_handle.write(line + "\n")
                self._last_write = step
            self._file_handle.flush()
            os.fsync(self._file_handle.fileno())


class EventWriter(TensorboardXWriter):
    """Detectron2's writer of TensorBoard's files, whose thread may find the folder full or gone."""

    def __init__(self, folder: str | os.PathLike):
        super().__init__(str(folder))
        self._folder = folder

    def write(self) -> None:
        """Write what is new since the last call."""
        with writing_events(self._folder):
            super().write()

    def close(self) -> None:
        """Write the rest."""
        with writing_events(self._folder):
            super().close()


class AdapterWriter(HookBase):
    """Writer of the adapter's files at the end of training, also of a finished run that is resumed.

    Register it after the hook that saves and before the hook that evaluates, with a description of
    the model: the files are there if the evaluation fails, and :meth:`record` adds the scores.
    """

    def __init__(self, folder: str | os.PathLike, about: Mapping[str, Any]):
        self.folder = folder
        self.about = dict(about)
        self.scores: dict[str, float] = {}
        self._steps: int | None = None  # length of the training, once it is complete

    def record(self, results: dict | None) -> dict | None:
        """Keep the scores of the newest evaluation, also in the files; return ``results``."""
        if results:
            self.scores = flatten_results_dict(results)
            if self._steps is not None:
                self._write()
        return results

    def after_train(self) -> None:
        """Write the files without scores, and log their size or why there are none."""
        trainer = self.trainer
        if trainer.iter < trainer.max_iter:  # an exception stopped the training
            return
        # A resumed run that was finished starts at its end, perhaps after max_iter.
        self._steps = max(trainer.start_iter, trainer.max_iter)
        self.scores = {}  # those of an earlier step are not this model's
        try:
            self._write()
        except WriteError:
            raise
        except UserError as error:  # the training is complete, and its checkpoint is saved
            logger.info("No adapter files: %s; model_final.pth is the whole model", error.line)
            self._steps = None
            return
        size = os.path.getsize(os.path.join(self.folder, MODEL_FILE)) / MIB
        text = "Saved the adapter: %s (%.1f MiB) and %s in %s"
        logger.info(text, MODEL_FILE, size, CONFIG_FILE, self.folder)

    def _write(self) -> None:
        trunk = self.trainer.trunk
        if not trunk.frozen:
            raise UserError("the trunk is trained too (recipe 'full')")
        if trunk.origin is None or trunk.origin.source == UNKNOWN:
            raise UserError("neither the config nor the checkpoint names the trunk's weights")
        about = {**self.about, "steps": self._steps, "scores": self.scores}
        save_adapter(self.trainer.bare_model, self.folder, **about)
