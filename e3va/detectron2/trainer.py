"""The training loop: Detectron2's, with mixed precision on any device, accumulation and checks."""

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..backbone import find_backbone
from ..utils.errors import UserError
from ..utils.seeding import seed_everything
from ..utils.training import OptimizerStep, report_step
from .backbone import model_parts
from .distributed import check_same_start
from .lean import prepare_model
from .sampling import sample_by_image

logger = logging.getLogger(__name__)


class HighwayTrainer(SimpleTrainer):
    """Trainer of a model with a highway; it checks in every step that a frozen trunk stays frozen.

    The random choices of a step depend on ``seed``, the iteration and the process, so a resumed run
    makes those of an uninterrupted one.

    Args:
        model: a Detectron2 model with an :class:`E3VASwin` backbone, perhaps inside
            DistributedDataParallel. Its losses are means over the examples.
        data_loader: iterable of lists of examples. If it has a method ``seek(iteration)``, the
            trainer calls it before training; without one, a resumed run starts the data again.
        optimizer: the optimizer of the trained parameters.
        precision: ``"fp32"``; ``"bf16"`` or ``"fp16"`` for autocast on CUDA or CPU, ``"fp16"`` with
            a scaled loss.
        accumulate: number of parts of each batch, one in memory at a time. The gradient is the
            mean over the whole batch.
        clip_norm: largest 2-norm of the gradient; None or 0 for no limit.
        seed: a whole number ≥ 0.
        sample_by_image: whether the samples of RPN and ROI heads depend on the image, so that they
            are the same for any number of processes and parts.

    Raises:
        TrunkNotFrozenError: a parameter of a frozen trunk requires grad, has a gradient, or is in
            the optimizer.
        UserError: an unknown precision, more parts than a batch has images, or processes that
            start differently.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list],
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "fp32",
        accumulate: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
        sample_by_image: bool = False,
    ):
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UserError(f"train.accumulate={accumulate}: expected a whole number ≥ 1")
        images = getattr(data_loader, "batch_size", None) or accumulate
        if accumulate > images:
            raise UserError(
                f"train.accumulate={accumulate} with {images} images per process: expected at most "
                f"{images}; lower it, or raise dataloader.train.total_batch_size"
            )
        super().__init__(model, data_loader, optimizer)
        device = next(model.parameters()).device
        self.optimizer_step = OptimizerStep(optimizer, device, precision, clip_norm)
        self.accumulate = accumulate
        self.seed = seed
        self.sample_by_image = sample_by_image
        self.trunk = find_backbone(model)[1].trunk
        self._reported = False

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter`` − 1 with all hooks; load weights before."""
        self.begin(start_iter, max_iter)
        # Detectron2's own loop prints a traceback for every exception, even for a user's mistake.
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter += 1
            finally:
                self.after_train()

    def begin(self, start_iter: int, max_iter: int) -> None:
        """Prepare data and model for iterations ``start_iter`` to ``max_iter`` − 1."""
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        if hasattr(self.data_loader, "seek"):
            self.data_loader.seek(start_iter)
        check_same_start(self.bare_model, self.trunk, start_iter)
        prepare_model(self.bare_model, mixed=self.optimizer_step.mixed)
        self.trunk.check_frozen(self.optimizer)

    def run_step(self) -> None:
        """Compute losses and gradients part by part, check the trunk, then clip and update."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_everything(self.seed, self.iter, comm.get_rank())

        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        parts = split_batch(batch, self.accumulate)
        for number, part in enumerate(parts, 1):
            weight = len(part) / len(batch)
            # Processes exchange gradients once a step, with the last part.
            waits = isinstance(self.model, DistributedDataParallel) and number < len(parts)
            with self.model.no_sync() if waits else contextlib.nullcontext():
                for name, loss in self._backward(part, weight).items():
                    losses[name] = losses.get(name, 0) + weight * loss
        self.trunk.check_frozen(self.optimizer)
        self.after_backward()
        self._write_metrics(losses, data_time)
        norm = self.optimizer_step.update()
        if norm is not None:
            self.storage.put_scalar("grad_norm", norm)

    def _backward(self, part: list, weight: float) -> dict[str, Tensor]:
        model = self.bare_model
        report = sampling = contextlib.nullcontext()
        if not self._reported:
            report = report_step(model, model_parts(model), len(part), logger.info)
            self._reported = True
        if self.sample_by_image:
            sampling = sample_by_image(model, part, self.seed, self.iter)
        with report, self.optimizer_step.autocast(), sampling:
            losses = self.model(part)
        self.optimizer_step.backward(weight * sum(losses.values()))
        return {name: loss.detach() for name, loss in losses.items()}

    @property
    def bare_model(self) -> nn.Module:
        """The model without DistributedDataParallel around it."""
        return getattr(self.model, "module", self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of iteration, hooks, optimizer and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.optimizer_step.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; the state of another trainer may lack the loss scale."""
        super().load_state_dict(state_dict)
        scaler = self.optimizer_step.scaler
        if state_dict.get("grad_scaler") and scaler.is_enabled():
            scaler.load_state_dict(state_dict["grad_scaler"])


def split_batch(batch: Sequence, parts: int) -> list[Sequence]:
    """Divide a batch into at most ``parts`` consecutive, nearly equal, non-empty parts."""
    parts = min(parts, len(batch))
    bounds = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
