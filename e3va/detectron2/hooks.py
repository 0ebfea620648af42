"""Hooks that Detectron2 lacks."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import CommonMetricPrinter, get_event_storage
from torch import nn

from ..adapter_files.files import CONFIG_FILE, MODEL_FILE, save_adapter
from ..utils.errors import UserError
from ..utils.measure import count_parameters, parameter_table, peak_memory
from ..weights.origin import UNKNOWN
from .backbone import model_parts

logger = logging.getLogger(__name__)


def _bare(model: nn.Module) -> nn.Module:
    return model.module if hasattr(model, "module") else model


class TrainedPartsReport(HookBase):
    """Prints before the first step which parts of the model train and which do not."""

    def before_train(self) -> None:
        """Log the table of parts, parameters and shares."""
        model = _bare(self.trainer.model)
        rows = count_parameters(model, model_parts(model))
        logger.info("What trains:\n%s", parameter_table(rows))
        backbone = [row for row in rows if row.part in ("trunk", "highway")]
        trained, total = (sum(getattr(r, a) for r in backbone) for a in ("trained", "total"))
        logger.info("Of the backbone %.2f%% trains", 100 * trained / total)


class PeakMemory(HookBase):
    """Records peak memory (MiB) as ``max_mem``, for all writers."""

    def after_step(self) -> None:
        """Record the peak so far."""
        self.trainer.storage.put_scalar("max_mem", peak_memory(), smoothing_hint=False)


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's console line, which says peak memory on CUDA alone, for all devices."""

    def write(self) -> None:
        """Print the line, then the peak of the resident set where there is no CUDA."""
        super().write()
        finished = get_event_storage().iter == self._max_iter
        if not finished and not torch.cuda.is_available():
            self.logger.info(" max_mem: %.0fM (resident set; no CUDA device)", peak_memory())


class AdapterWriter(HookBase):
    """Writes the adapter's files when training has come to its end; register it behind the hooks
    that save and evaluate.

    Also where a finished run is resumed: it is evaluated again, and its files written again.

    Args:
        folder: for the files.
        about: what they say of the model, see :func:`e3va.detectron2.describe.describe_config`.
    """

    def __init__(self, folder: str | os.PathLike, about: Mapping[str, Any]):
        self.folder = folder
        self.about = dict(about)
        self.scores: dict[str, float] = {}

    def record(self, results: dict | None) -> None:
        """Keep the scores of the newest evaluation, as :class:`detectron2.engine.hooks.EvalHook`
        gets them."""
        if results:
            self.scores = flatten_results_dict(results)

    def after_train(self) -> None:
        """Write them, or say why not."""
        trainer = self.trainer
        if trainer.iter < trainer.max_iter:  # stopped by an exception
            return
        reason = self._reason_not_to()
        if reason:
            logger.info("No adapter files: %s; model_final.pth is the whole model", reason)
            return
        # A finished run that is resumed starts where it ended, perhaps behind max_iter.
        steps = max(trainer.start_iter, trainer.max_iter)
        try:
            save_adapter(
                *(_bare(trainer.model), self.folder),
                **{**self.about, "steps": steps, "scores": self.scores},
            )
        except UserError as error:  # the training is done, and its checkpoint there
            logger.warning("No adapter files: %s; model_final.pth is the whole model", error.line)
            return
        size = os.path.getsize(os.path.join(self.folder, MODEL_FILE)) / 2**20
        logger.info(
            "Saved the adapter: %s (%.1f MiB) and %s in %s",
            *(MODEL_FILE, size, CONFIG_FILE, self.folder),
        )

    def _reason_not_to(self) -> str:
        trunk = self.trainer.trunk
        if not trunk.frozen:
            return "the trunk is trained too (recipe 'full')"
        if trunk.origin is None or trunk.origin.source == UNKNOWN:
            return (
                "it is not known which pretrained weights the trunk has (none were given, or a "
                "checkpoint that does not say)"
            )
        return ""
