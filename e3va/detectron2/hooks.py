"""Hooks that Detectron2 lacks."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from ..adapter_files.files import CONFIG_FILE, MODEL_FILE, save_adapter
from ..utils.errors import UserError
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
        super().write()
        finished = get_event_storage().iter == self._max_iter
        if not finished and not torch.cuda.is_available():
            self.logger.info(" max_mem: %.0fM (resident set; no CUDA device)", peak_memory())


class AdapterWriter(HookBase):
    """Writer of the adapter's files at the end of training, also of a finished run that is resumed.

    Register it after the hooks that save and evaluate, with a description of the model.
    """

    def __init__(self, folder: str | os.PathLike, about: Mapping[str, Any]):
        self.folder = folder
        self.about = dict(about)
        self.scores: dict[str, float] = {}

    def record(self, results: dict | None) -> dict | None:
        """Keep the scores of the newest evaluation; return ``results``."""
        if results:
            self.scores = flatten_results_dict(results)
        return results

    def after_train(self) -> None:
        """Write the files, or log why there are none."""
        trainer, origin = self.trainer, self.trainer.trunk.origin
        if trainer.iter < trainer.max_iter:  # an exception stopped the training
            return
        # A resumed run that was finished starts at its end, perhaps after max_iter.
        steps = max(trainer.start_iter, trainer.max_iter)
        about = {**self.about, "steps": steps, "scores": self.scores}
        try:
            if not trainer.trunk.frozen:
                raise UserError("the trunk is trained too (recipe 'full')")
            if origin is None or origin.source == UNKNOWN:
                raise UserError("neither the config nor the checkpoint names the trunk's weights")
            save_adapter(trainer.bare_model, self.folder, **about)
        except UserError as error:  # the training is complete, and its checkpoint is saved
            logger.info("No adapter files: %s; model_final.pth is the whole model", error.line)
            return
        size = os.path.getsize(os.path.join(self.folder, MODEL_FILE)) / MIB
        text = "Saved the adapter: %s (%.1f MiB) and %s in %s"
        logger.info(text, MODEL_FILE, size, CONFIG_FILE, self.folder)
