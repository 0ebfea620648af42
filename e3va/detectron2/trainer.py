"""The training loop: Detectron2's, with mixed precision on any device, accumulation and proofs."""

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.errors import UserError
from ..utils.measure import MIB, track_saved_bytes
from ..utils.seeding import seed_everything
from .backbone import find_trunk_module, model_parts
from .distributed import check_same_start
from .lean import prepare_model
from .sampling import sample_by_image

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class HighwayTrainer(SimpleTrainer):
    """Trains a model along its highway; a frozen trunk is proved so before and in every step.

    Every step's random choices are seeded from ``seed`` and the iteration, so that a resumed run
    makes those of an uninterrupted one; the samples of RPN and ROI heads from the image too, so
    that they do not depend on the number of processes or on ``accumulate``.

    Args:
        model: a Detectron2 model with an :class:`E3VASwin` backbone, perhaps inside
            DistributedDataParallel; maps a list of examples to a dict of losses, each a mean over
            the examples.
        data_loader: gives lists of examples; its ``seek(iteration)``, if it has one, is called
            before training (without one, a resumed run's data start anew).
        optimizer: of the trained parameters alone.
        precision: ``"fp32"``; ``"bf16"`` or ``"fp16"`` under autocast, the latter with a scaled
            loss. On CUDA and on CPU.
        accumulate: how many parts each batch is divided into; one part at a time is in memory. The
            gradient is the mean over the whole batch.
        clip_norm: largest 2-norm of the gradient; None or 0 for no limit.
        seed: a whole number ≥ 0.

    Raises:
        TrunkNotFrozenError: a parameter of a frozen trunk requires grad, has a gradient, or is in
            the optimizer.
        UserError: an unknown precision or accumulation; when training begins, processes that do
            not begin alike.
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
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UserError(f"train.accumulate={accumulate}: expected a whole number ≥ 1")
        super().__init__(model, data_loader, optimizer)
        self.dtype = PRECISIONS[precision]
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.seed = seed
        self.trunk = find_trunk_module(model)
        self.trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._measured = False

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter`` − 1 with all hooks.

        Weights are to be loaded before: the model is prepared for its ``memory`` here.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        if hasattr(self.data_loader, "seek"):
            self.data_loader.seek(start_iter)
        check_same_start(self._bare_model(), self.trunk, start_iter)
        prepare_model(self._bare_model(), mixed=self.dtype is not None)
        self._prove_frozen()
        # Detectron2's own loop prints a traceback for every exception, a user's mistake included.
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

    def run_step(self) -> None:
        """One step: losses and gradients part by part, proof, clipping, update."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_everything(self.seed, self.iter, comm.get_rank())

        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}
        parts = split_batch(batch, self.accumulate)
        for number, part in enumerate(parts):
            weight = len(part) / len(batch)
            with self._reduce_gradients(last=number + 1 == len(parts)):
                for name, loss in self._backward(part, weight).items():
                    losses[name] = losses.get(name, 0) + weight * loss
        self._prove_frozen()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._update()

    def _prove_frozen(self) -> None:
        if self.trunk.frozen:  # the recipe "full" trains it
            self.trunk.check_frozen(self.optimizer)

    def _backward(self, part: list, weight: float) -> dict[str, Tensor]:
        with (
            self._report_first_forward(len(part)),
            self._autocast(),
            sample_by_image(self._bare_model(), part, self.seed, self.iter),
        ):
            losses = self.model(part)
        self.scaler.scale(weight * sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
            get_event_storage().put_scalar("grad_norm", norm.item())
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _reduce_gradients(self, last: bool) -> contextlib.AbstractContextManager:
        # Gradients cross between processes once a step, with the last part.
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _bare_model(self) -> nn.Module:
        return self.model.module if hasattr(self.model, "module") else self.model

    @contextlib.contextmanager
    def _report_first_forward(self, images: int):
        if self._measured:
            yield
            return
        self._measured = True
        model = self._bare_model()
        with track_saved_bytes(model, model_parts(model)) as saved:
            yield
        gradients = sum(p.numel() * p.element_size() for p in self.trained) / MIB
        weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
        logger.info(
            "One step on %d images keeps %s for the backward pass, besides %.1f MiB of weights, "
            "%.1f MiB of gradients and the optimizer's state",
            *(images, saved, weights, gradients),
        )

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; one of another trainer may lack the loss scale."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state_dict["grad_scaler"])


def split_batch(batch: Sequence, parts: int) -> list[Sequence]:
    """Divide a batch into at most ``parts`` consecutive, nearly equal, non-empty parts."""
    parts = min(parts, len(batch))
    bounds = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
