"""Forms of the highway that could beat the default on a trunk that has seen photographs.

    python benchmarks/accuracy --candidates [--photos FOLDER] [--streets FOLDER]

compares them on the tasks with label maps by their validation scores. The ranks are the largest
that train at most 1.5% of the backbone, and 5% where a name begins with "wide". The percentages in
the titles are the trained shares with the trunk ``swin_mini``. benchmarks/results/accuracy has the
scores of earlier candidates with a trunk that had seen only drawn shapes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from e3va import E3VABackbone, Highway, SwinPreset
from e3va.highway.adapters.conv import DepthwiseConvAdapter

from . import candidate_highways as highways
from .candidate_adapters import MakeAdapter, MonaAdapter, attention, dense, fitted, several
from .methods import METHODS, Method


def _form(
    ranks: int | Sequence[int],
    make: MakeAdapter | Sequence[MakeAdapter] = DepthwiseConvAdapter,
    highway: type[Highway] | partial = Highway,
    **settings: Any,
) -> dict[str, Any]:
    """Describe a highway with adapters from outside.

    Args:
        ranks: rank of all adapters, or one for each stage; 0 for a stage without adapters.
        make: function ``(dim, rank) -> adapter``, or one for each stage.
        highway: class of the highway.
        settings: changes to the recipe ``e3va_chain``.
    """
    ranks = (ranks,) * 4 if isinstance(ranks, int) else ranks
    make = (make,) * 4 if callable(make) else make

    def build(preset: SwinPreset) -> E3VABackbone:
        parts = dict(zip(preset.dims, zip(make, ranks, strict=True), strict=True))

        def make_adapter(dim: int) -> nn.Module:
            function, rank = parts[dim]
            return function(dim, rank) if rank else nn.Identity()

        module = highway(preset.dims, preset.depths, settings, make_adapter=make_adapter)
        for rank, stage in zip(ranks, module.stages, strict=True):
            if not rank:
                stage.mlp = nn.ModuleList()
        return E3VABackbone(preset, module)

    return {"backbone": build}


def _copy(rank: int, *copied: int) -> dict[str, Any]:
    """Describe a chain with trained copies of the last blocks of some stages."""

    def build(preset: SwinPreset) -> E3VABackbone:
        highway = highways.CopyHighway(
            preset.dims,
            preset.depths,
            make_adapter=partial(DepthwiseConvAdapter, rank=rank),
            copied=copied,
            heads=preset.num_heads,
            window=preset.window,
        )
        return highways.CopyBackbone(preset, highway)

    return {"backbone": build}


_CONV = DepthwiseConvAdapter
_ATTENTION = (_CONV, _CONV, attention, attention)


def _second(rank: int, second: int, kernel: int) -> dict[str, Any]:
    return _form(rank, highway=partial(highways.SecondPassHighway, second=second, kernel=kernel))


def _side(width: int) -> dict[str, Any]:
    widths = [width * 2**s for s in range(4)]
    return _form(widths, highways.SideBlock, partial(highways.SideHighway, width=width))


CANDIDATES = {
    name: Method(title, **how)
    for name, title, how in (
        ("chain", "chain 5×5, rank 21: 1.47%", {"highway": {"rank": 21}}),
        ("chain 1x1", "chain 1×1, rank 22: 1.45%", {"highway": {"rank": 22, "kernel": 1}}),
        ("chain 3x3", "chain 3×3, rank 22: 1.48%", {"highway": {"rank": 22, "kernel": 3}}),
        ("chain 7x7", "chain 7×7, rank 20: 1.49%", {"highway": {"rank": 20, "kernel": 7}}),
        ("chain 3+5+7", "chain 3×3 + 5×5 + 7×7, rank 18: 1.45%", _form(18, several(3, 5, 7))),
        ("mona", "chain of Mona's adapters, rank 17: 1.49%", _form(17, MonaAdapter)),
        ("dense", "chain, K over all channels 3×3, rank 16: 1.46%", _form(16, dense)),
        (
            "two taps",
            "chain, 2 taps a block, rank 10: 1.44%",
            {"highway": {"rank": 10, "taps": "residual"}},
        ),
        ("grows", "chain, ranks 4, 8, 17, 34: 1.49%", _form((4, 8, 17, 34))),
        ("grows 0", "chain, ranks 0, 12, 20, 29: 1.49%", _form((0, 12, 20, 29))),
        ("last two", "chain, ranks 0, 0, 18, 36: 1.50%", _form((0, 0, 18, 36))),
        (
            "principal",
            "chain, D starts as principal components, rank 21: 1.47%",
            _form(21, fitted(frozen=False)),
        ),
        (
            "principal grows",
            "chain, D starts as principal components, ranks 4, 8, 17, 34: 1.49%",
            _form((4, 8, 17, 34), fitted(frozen=False)),
        ),
        (
            "frozen random",
            "parallel, D random and frozen, rank 40: 1.50%",
            _form(40, fitted(principal=False), form="parallel"),
        ),
        (
            "frozen principal",
            "parallel, D principal and frozen, rank 40: 1.50%",
            _form(40, fitted(), form="parallel"),
        ),
        (
            "frozen detached",
            "chain detached, D principal and frozen, rank 40: 1.50%",
            _form(40, fitted(), highways.DetachedHighway),
        ),
        (
            "frozen chain",
            "chain with the tap's norm, D principal and frozen, rank 40: 1.50%",
            _form(40, fitted(norm=False), highways.TapNormHighway),
        ),
        (
            "frozen grows",
            "chain with the tap's norm, D principal and frozen, ranks 12, 24, 36, 56: 1.49%",
            _form((12, 24, 36, 56), fitted(norm=False), highways.TapNormHighway),
        ),
        (
            "shared",
            "chain, one adapter for a stage, rank 64: 1.44%",
            {"highway": {"recipe": "e3va_wide", "shared": True}},
        ),
        ("detached", "chain detached, rank 21: 1.47%", _form(21, highway=highways.DetachedHighway)),
        ("attention", "chain, attention at two stages: 1.43%", _form(18, _ATTENTION)),
        (
            "mixed taps",
            "chain, learned mean of taps, rank 21: 1.47%",
            _form(21, highway=highways.MixedTapsHighway),
        ),
        ("side", "side network, widths 4, 8, 16, 32: 1.43%", _side(4)),
        ("second pass", "chain and second pass 7×7, ranks 18 and 9: 1.49%", _second(18, 9, 7)),
        ("second strong", "chain and second pass 7×7, ranks 10 and 32: 1.49%", _second(10, 32, 7)),
        (
            "second 11x11",
            "chain and second pass 11×11, ranks 16 and 12: 1.48%",
            _second(16, 12, 11),
        ),
        (
            "top down",
            "chain and way back 5×5, ranks 16 and 17: 1.48%",
            _form(16, highway=partial(highways.TopDownHighway, second=17, kernel=5)),
        ),
        (
            "standard out",
            "chain, pyramid norms start standardized, rank 21: 1.47%",
            _form(21, highway=highways.StandardOutHighway),
        ),
        (
            "power out",
            "chain, pyramid norms with a power, rank 21: 1.47%",
            _form(21, highway=highways.PowerOutHighway),
        ),
        ("wide", "chain 5×5, rank 75: 4.94%", {"highway": {"rank": 75}}),
        ("wide grows", "chain, ranks 12, 24, 60, 124: 4.98%", _form((12, 24, 60, 124))),
        (
            "wide principal",
            "chain, D starts as principal components, ranks 12, 24, 60, 124: 4.98%",
            _form((12, 24, 60, 124), fitted(frozen=False)),
        ),
        (
            "wide two taps",
            "chain, 2 taps a block, rank 37: 4.91%",
            {"highway": {"rank": 37, "taps": "residual"}},
        ),
        ("wide mona", "chain of Mona's adapters, rank 57: 4.94%", _form(57, MonaAdapter)),
        ("wide dense", "chain, K over all channels 3×3, rank 40: 4.88%", _form(40, dense)),
        (
            "wide dense grows",
            "chain, K over all channels 3×3, ranks 16, 24, 39, 60: 4.96%",
            _form((16, 24, 39, 60), dense),
        ),
        (
            "wide frozen",
            "chain with the tap's norm, D principal and frozen, ranks 36, 72, 110, 230: 4.96%",
            _form((36, 72, 110, 230), fitted(norm=False), highways.TapNormHighway),
        ),
        (
            "wide attention",
            "chain, attention at two stages, ranks 12, 24, 45, 80: 4.94%",
            _form((12, 24, 45, 80), _ATTENTION),
        ),
        ("wide second", "chain and second pass 7×7, ranks 48 and 80: 5.00%", _second(48, 80, 7)),
        ("wide side", "side network, widths 9, 18, 36, 72: 4.33%", _side(9)),
        (
            "copy 16",
            "chain and a copy of the last block at stride 16, rank 10: 6.66%",
            _copy(10, 2),
        ),
        (
            "copy 32",
            "chain and a copy of the last block at stride 32, rank 10: 20.86%",
            _copy(10, 3),
        ),
    )
}
ALL = METHODS | CANDIDATES
