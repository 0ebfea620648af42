"""The settings of a training: learning rates, their schedule, and the optimizer's groups."""

from dataclasses import dataclass, field
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
)
from torch import nn


def _setting(default: Any, text: str, least: int | None = None) -> Any:
    """Return a dataclass field with its help text and the smallest value of a whole number."""
    return field(default=default, metadata={"help": text, "least": least})


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training, which a resumed run takes from its checkpoint.

    Their help texts are also those of the options of ``e3va train``. The defaults of ``adapter_lr``
    and ``trunk_lr`` are the rates of ``e3va_chain`` on label maps and of ``full`` on boxes and
    masks, with ``lr`` 2e-3, in benchmarks/results/accuracy/results.md; docs/which-method.md says
    when others are better. Vectors have no weight decay.
    """

    steps: int = _setting(1000, "number of updates", 1)
    batch_size: int = _setting(2, "number of images in an update", 1)
    lr: float = _setting(1e-3, "learning rate of heads, neck and pyramid norms (AdamW)")
    adapter_lr: float = _setting(6.4, "learning rate of the adapters, as a multiple of --lr")
    trunk_lr: float = _setting(0.4, "learning rate of a trunk that trains, as a multiple of --lr")
    weight_decay: float = _setting(0.05, "weight decay of matrices")
    clip_norm: float = _setting(5.0, "largest 2-norm of the gradient")
    precision: str = _setting("fp32", "fp32, or bf16 or fp16 for mixed precision")
    seed: int = _setting(0, "seed of everything random", 0)
    checkpoint_every: int = _setting(200, "steps between checkpoints, 0 for one at the end", 0)
    eval_every: int = _setting(0, "steps between evaluations, 0 for one at the end", 0)


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
    warm-up over a quarter of the steps, then a cosine to zero. The warm-up is long because new
    heads send nearly random gradients into the backbone at first.
    """
    warmup = max(1, steps // 4)
    rising = LinearParamScheduler(1 / warmup, 1 + 1 / warmup)  # reaches 1 in its last step
    share = warmup / steps
    return CompositeParamScheduler(
        [rising, CosineParamScheduler(1, 0)], [share, 1 - share], ["rescaled", "rescaled"]
    )
