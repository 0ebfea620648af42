"""Hooks that Detectron2 lacks."""

import logging

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from ..measure import count_parameters, parameter_table, peak_memory
from .backbone import model_parts

logger = logging.getLogger(__name__)


class TrainedPartsReport(HookBase):
    """Prints before the first step which parts of the model train and which do not."""

    def before_train(self) -> None:
        """Log the table of parts, parameters and shares."""
        model = self.trainer.model
        model = model.module if hasattr(model, "module") else model
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
