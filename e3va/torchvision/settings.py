"""How a model is trained, as data: settings, learning rates, and what goes by which rate."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; what a resumed run takes from its checkpoint.

    Attributes:
        steps, batch_size: updates, and images in each.
        lr: of heads, neck and pyramid norms; AdamW, linear warm-up over a twentieth of the steps,
            then a cosine to zero.
        adapter_lr, trunk_lr: multiples of ``lr`` for the adapters, and for a trunk that is trained
            (the recipe ``full``): of 0.5, 2 and 8 the best on five and on three of the five tasks of
            benchmarks/accuracy, with ``lr`` 2e-3.
        weight_decay: of matrices; vectors have none.
        clip_norm: largest 2-norm of the gradient.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (autocast).
        seed: of everything random.
        checkpoint_every, eval_every: steps; 0 for at the end alone.
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
    """Optimizer groups of the trained parameters, by learning rate and weight decay."""
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


def rate_factor(step: int, steps: int) -> float:
    """Share of the full learning rate at a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
