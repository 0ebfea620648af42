"""The settings of a training: learning rates, their schedule, and the optimizer's groups."""

from dataclasses import dataclass
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
)
from torch import nn


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training, which a resumed run takes from its checkpoint.

    Attributes:
        steps: number of updates.
        batch_size: number of images in an update.
        lr: learning rate of heads, neck and pyramid norms (AdamW); see :func:`rate_schedule`.
        adapter_lr: multiple of ``lr`` for the adapters; 8 is the best of 0.5, 2 and 8 on the five
            tasks of benchmarks/accuracy with ``lr`` 2e-3.
        trunk_lr: multiple of ``lr`` for a trunk that trains (recipe ``full``); 0.5 is the best on
            three of those tasks.
        weight_decay: weight decay of matrices; vectors have none.
        clip_norm: largest 2-norm of the gradient.
        precision: ``"fp32"``; ``"bf16"`` or ``"fp16"`` for autocast.
        seed: seed of everything random.
        checkpoint_every: steps between checkpoints; 0 for one at the end.
        eval_every: steps between evaluations; 0 for one at the end.
    """

    steps: int = 1000
    batch_size: int = 2
    lr: float = 1e-3
    adapter_lr: float = 8.0
    trunk_lr: float = 0.5
    weight_decay: float = 0.05
    clip_norm: float = 5.0
    precision: str = "fp32"
    seed: int = 0
    checkpoint_every: int = 200
    eval_every: int = 0


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the optimizer's groups of the trained parameters, by learning rate and decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0
        if ".bottom_up.trunk." in f".{name}":
            factor = settings.trunk_lr
        elif ".highway." in name and ".out_norm." not in name:
            factor = settings.adapter_lr
        decay = settings.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((settings.lr * factor, decay), []).append(parameter)
    return [
        {"params": members, "lr": lr, "weight_decay": decay}
        for (lr, decay), members in groups.items()
    ]


def rate_schedule(steps: int) -> CompositeParamScheduler:
    """Return the schedule of the learning rates of a training of ``steps`` updates.

    It maps the share of updates that are done to the share of the full learning rate: a linear
    warm-up over a twentieth of the steps, then a cosine to zero.
    """
    warmup = max(1, steps // 20)
    rising = LinearParamScheduler(1 / warmup, 1 + 1 / warmup)  # reaches 1 in its last step
    share = warmup / steps
    return CompositeParamScheduler(
        [rising, CosineParamScheduler(1, 0)], [share, 1 - share], ["rescaled", "rescaled"]
    )
