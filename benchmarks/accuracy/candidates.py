"""The forms of the highway that were tried before the default was chosen.

    python benchmarks/accuracy --candidates [--photos FOLDER] [--streets FOLDER]

compares them on the tasks with label maps by their validation scores. The recipe ``e3va_chain``
holds what helped; the rest is here so that the table can be printed again. Most candidates are
configs of the highway. The others bring adapters from outside, or a highway of their own class.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3va import E3VABackbone, Highway, StageOutput, SwinPreset
from e3va.highway.adapters.conv import DepthwiseConvAdapter
from e3va.highway.adapters.dual_low_rank import DualLowRankAdapter
from e3va.highway.config import OUTSIDE

from .methods import METHODS, Method

# As in the paper, adapters read only their taps, and their outputs add up.
PARALLEL = {"form": "parallel", "rank": 10}
# The paper's adapters, two for each block: as many parameters.
DUAL = {"adapter": "dual_low_rank", "form": "parallel", "taps": "residual", "rank": 4}


class Normed(DualLowRankAdapter):
    """The paper's adapter on a normalized tap."""

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        return super().forward(F.layer_norm(z, z.shape[-1:]), height, width)


class NotNormed(DepthwiseConvAdapter):
    """The default adapter without its norm."""

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        y = self.down(z).transpose(1, 2).unflatten(2, (height, width))
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))


class Gated(DepthwiseConvAdapter):
    """The default adapter with a gate in place of GELU."""

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        y = self.down(F.layer_norm(z, z.shape[-1:])).transpose(1, 2).unflatten(2, (height, width))
        return self.up((y * torch.sigmoid(self.mix(y))).flatten(2).transpose(1, 2))


class SecondPassHighway(Highway):
    """A highway with one more adapter J for each stage: ``h_s ← h_s + J_s(x_s + h_s)``.

    Args:
        preset: geometry of the trunk.
        second: rank of J.
        kernel: side of the convolution in J.
        settings: changes to the recipe ``e3va_chain``.
    """

    def __init__(self, preset: SwinPreset, second: int, kernel: int, **settings: Any):
        super().__init__(preset.dims, preset.depths, settings)
        self.second = nn.ModuleList(
            DepthwiseConvAdapter(dim, second, kernel) for dim in preset.dims
        )
        self.config = replace(self.config, adapter=OUTSIDE, options={})

    def advance(
        self, stage: StageOutput, h_in: Tensor | None, patch_merging: nn.Module | None
    ) -> tuple[Tensor | None, Tensor | None]:
        own = self.stages[stage.index]
        h = own(stage, h_in)
        h = h + self.second[stage.index](stage.out + h, stage.height, stage.width)
        return own.join(stage, h, patch_merging)


def _adapters(make: Callable[[int], nn.Module], **settings: Any) -> dict[str, Any]:
    """Describe a parallel highway with the adapters of a function ``dim -> module``."""
    settings = {"form": "parallel", **settings}
    return {"backbone": lambda preset: E3VABackbone(preset, settings, make_adapter=make)}


def _second_pass(rank: int, second: int, kernel: int, **settings: Any) -> dict[str, Any]:
    settings = {**PARALLEL, "rank": rank, **settings}

    def build(preset: SwinPreset) -> E3VABackbone:
        return E3VABackbone(preset, SecondPassHighway(preset, second, kernel, **settings))

    return {"backbone": build}


def _growing(dim: int, ranks: tuple[int, ...] = (4, 6, 8, 12)) -> nn.Module:
    """Build an adapter with a rank for each stage of the demonstration's trunk."""
    return DepthwiseConvAdapter(dim, ranks[(dim // 24).bit_length() - 1])


CANDIDATES = {
    name: Method(title, **how)
    for name, title, how in (
        ("chain", "a chain: the default", {"highway": {"rank": 10}}),
        ("chain 1x1", "a chain, 1×1: no neighbors", {"highway": {"rank": 10, "kernel": 1}}),
        ("parallel", "parallel: 1 normed tap a block, 5×5, rank 10", {"highway": PARALLEL}),
        ("second pass", "second pass 7×7, ranks 6 and 6", _second_pass(6, 6, 7)),
        ("second 5x5", "second pass 5×5, ranks 6 and 6", _second_pass(6, 6, 5)),
        ("second 3 10", "second pass 7×7, ranks 3 and 10", _second_pass(3, 10, 7)),
        (
            "second two taps",
            "second pass 7×7, ranks 3 (2 taps a block) and 6",
            _second_pass(3, 6, 7, taps="residual"),
        ),
        (
            "second chain",
            "a chain and a second pass 7×7, rank 6",
            _second_pass(6, 6, 7, form="chain"),
        ),
        (
            "two taps",
            "2 taps a block, rank 5",
            {"highway": {**PARALLEL, "taps": "residual", "rank": 5}},
        ),
        ("kernel 3", "3×3", {"highway": {**PARALLEL, "kernel": 3}}),
        ("no mixing", "1×1: no neighbors", {"highway": {**PARALLEL, "kernel": 1}}),
        ("no norm", "taps not normed", _adapters(partial(NotNormed, rank=10))),
        ("gated", "a gate instead of GELU", _adapters(partial(Gated, rank=10))),
        ("rank grows", "ranks 4, 6, 8, 12 from stage to stage", _adapters(_growing)),
        ("dual", "paper's adapters, 2 residual taps", {"highway": DUAL}),
        (
            "dual normed",
            "paper's adapters, 2 residual taps, normed",
            _adapters(partial(Normed, rank=4), taps="residual"),
        ),
        (
            "sublayer",
            "paper's adapters, 2 sublayer taps",
            {"highway": {**DUAL, "taps": "sublayer"}},
        ),
    )
}
ALL = METHODS | CANDIDATES
