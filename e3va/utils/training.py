"""The optimizer step and the report of the first step, for both frameworks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import check_choice
from .measure import MIB, SavedBytes, track_saved_bytes

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class OptimizerStep:
    """Backward pass, gradient clipping and update, with a scaled loss in float16."""

    optimizer: torch.optim.Optimizer
    device: torch.device  # of the model
    precision: str = "fp32"  # a key of PRECISIONS; all others use autocast
    clip_norm: float | None = None  # largest 2-norm of the gradient; None or 0 for no limit

    def __post_init__(self):
        check_choice("precision", self.precision, PRECISIONS)
        self.dtype = PRECISIONS[self.precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def mixed(self) -> bool:
        """Whether training runs in mixed precision."""
        return self.dtype is not None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of forward passes."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss`` (scaled in float16)."""
        self.scaler.scale(loss).backward()

    def update(self) -> float | None:
        """Clip the gradient and update the parameters; return the 2-norm if there is a limit."""
        norm = None
        self.scaler.unscale_(self.optimizer)
        if self.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm).item()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm


@contextlib.contextmanager
def report_step(
    model: nn.Module,
    parts: Mapping[str, nn.Module | None],
    images: int,
    write: Callable[[str], Any],
) -> Iterator[SavedBytes]:
    """Measure a forward pass in the block, see ``track_saved_bytes``, and write one line."""
    with track_saved_bytes(model, parts) as saved:
        yield saved
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained) / MIB
    write(
        f"A step on {images} images keeps {saved} for the backward pass, in addition to "
        f"{weights:.1f} MiB of weights, {gradients:.1f} MiB of gradients and the optimizer's state"
    )
