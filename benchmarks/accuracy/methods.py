"""The ways of tuning that are compared: what each trains in the backbone, besides pyramid norms.

Every method has the same trunk, neck and heads, and starts from the same numbers. What a method
adds starts as the identity. The recipes ``e3va_chain`` and ``e3va_wide`` are as users get them. The
other ranks are the largest that train at most a given share of the backbone, whatever the trunk.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from e3va import E3VABackbone, SwinPreset, UserError
from e3va.swin.trunk import SwinTrunk


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        title: name in tables and pictures.
        highway: recipe, or mapping of a recipe and changes, see :class:`e3va.E3VABackbone`.
        prepare: function that changes a trunk in which everything trains, and decides which of its
            parameters train; None for no change.
        rates: learning rates of the backbone's trained parameters that the search tries first,
            ascending, as multiples of the heads' learning rate; a single one is not searched.
        share: largest share of the backbone's parameters that trains; it chooses the rank. None for
            a method without a rank.
        ranked: function from the rank to the value of ``highway``.
    """

    title: str
    highway: str | Mapping[str, Any] = "e3va_chain"
    prepare: Callable[[SwinTrunk], None] | None = None
    rates: Sequence[float] = (1.6, 6.4, 25.6)
    share: float | None = None
    ranked: Callable[[int], Mapping[str, Any]] | None = None

    def rank(self, preset: SwinPreset) -> int | None:
        """Return the largest rank within the share, and 1 if there is none; None without ranks."""
        return None if self.ranked is None else self.fitted(preset).highway["rank"]

    def fitted(self, preset: SwinPreset) -> "Method":
        """Return the method with ``highway`` for the trunk's rank."""
        if self.ranked is None:
            return self
        rank = _largest_rank(self.ranked, self.share, preset)
        return replace(self, highway=self.ranked(rank))


@lru_cache
def _largest_rank(ranked: Callable[[int], Mapping[str, Any]], share: float, preset) -> int:
    def fits(rank: int) -> bool:
        try:
            return trained_share(Method("", ranked(rank)), preset) <= share
        except UserError:  # above the width of a matrix
            return False

    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def trained_share(method: Method, preset: SwinPreset) -> float:
    """Return the share of the backbone's parameters that a method without ``ranked`` trains."""
    with torch.device("meta"):  # sizes without memory
        backbone = E3VABackbone(preset, method.highway)
        if method.prepare:
            method.prepare(backbone.trunk)
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained / sum(p.numel() for p in parameters)


def _train_only(trunk: nn.Module, wanted: Callable[[str], bool]) -> None:
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(wanted(name))


def _norms(trunk: SwinTrunk) -> None:
    trunk.requires_grad_(False)
    for module in trunk.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def _biases(trunk: SwinTrunk) -> None:
    """BitFit (arXiv 2106.10199)."""
    _train_only(trunk, lambda name: name.endswith(".bias"))


def _last_stage(trunk: SwinTrunk) -> None:
    last = len(trunk.layers) - 1
    _train_only(trunk, lambda name: name.startswith(f"layers.{last}."))


def _lora_of_rank(rank: int) -> dict[str, Any]:
    return {"adapter": "lora", "rank": rank, "placement": "inside"}


def _bottleneck_of_rank(rank: int) -> dict[str, Any]:
    return {"adapter": "bottleneck", "rank": rank, "placement": "inside"}


def _chain_of_rank(rank: int) -> dict[str, Any]:
    return {"recipe": "e3va_chain", "rank": rank}


def _paper_of_rank(rank: int) -> dict[str, Any]:
    return {"recipe": "e3va", "rank": rank}


def _offset_of_rank(rank: int) -> dict[str, Any]:
    changes = {"taps": "residual", "downsample": "offset"}
    return {"recipe": "e3va", "rank": rank, **changes}


WHOLE_RATES = (0.1, 0.4, 1.6)  # of pretrained weights, which need small steps
SMALL = 0.015  # largest share of the backbone that trains
METHODS = {
    "full": Method("full fine-tuning", "full", rates=WHOLE_RATES),
    "frozen": Method("frozen backbone", "frozen", rates=(1.0,)),
    "norms": Method("norms only", "full", _norms),
    "biases": Method("biases only", "full", _biases),
    "last stage": Method("last stage only", "full", _last_stage, rates=WHOLE_RATES),
    "lora": Method("LoRA", share=SMALL, ranked=_lora_of_rank),
    "bottleneck": Method("bottleneck adapters", share=SMALL, ranked=_bottleneck_of_rank),
    "e3va_chain": Method("E³VA"),
    "e3va_wide": Method("E³VA, wide", "e3va_wide"),
    "offset": Method("E³VA, paper's adapters, offset form", share=SMALL, ranked=_offset_of_rank),
    "e3va": Method("E³VA as in the paper", share=SMALL, ranked=_paper_of_rank),
}
DEFAULT = "e3va_chain"
COMPARED = ("full", "frozen", "lora", "e3va_chain", "e3va_wide", "e3va")


def _at_shares(name: str, method: Method, shares: Sequence[float]) -> dict[str, Method]:
    return {f"{name} {share:.1%}": replace(method, share=share) for share in shares}


# What the front of scores adds to each of these methods: the same at other ranks.
FRONT = {
    "e3va_chain": _at_shares(
        "e3va_chain", Method("E³VA", ranked=_chain_of_rank), (0.003, 0.006, 0.03, 0.05, 0.1)
    ),
    "lora": _at_shares("lora", METHODS["lora"], (0.006, 0.05)),
}
