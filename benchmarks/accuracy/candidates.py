"""What was tried on the way to the default highway, each a change that is kept small.

    python benchmarks/accuracy --candidates [--photos FOLDER] [--streets FOLDER]

compares them on the tasks with label maps by their validation scores. What helped is in
:class:`e3va.DepthwiseConvAdapter` and the chain of :class:`e3va.Highway`; the rest is here alone, so that
the table can be printed again. Where a row does not say otherwise, adapters read their taps alone
and their outputs add up, as in the paper ("parallel").
"""

from collections.abc import Callable
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3va import DepthwiseConvAdapter, DualLowRankAdapter, E3VABackbone, Highway

from .methods import METHODS, Method


class Normed(nn.Module):
    """An adapter that reads its tap normalised."""

    def __init__(self, dim: int, make: Callable[[int], nn.Module]):
        super().__init__()
        self.inner = make(dim)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        return self.inner(F.layer_norm(z, z.shape[-1:]), height, width)


class NotNormed(DepthwiseConvAdapter):
    """The default adapter without its norm."""

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        y = self.down(z).transpose(1, 2).unflatten(2, (height, width))
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))


class Gated(DepthwiseConvAdapter):
    """The mixed channels are multiplied by a gate instead of going through GELU."""

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        y = self.down(F.layer_norm(z, z.shape[-1:])).transpose(1, 2).unflatten(2, (height, width))
        return self.up((y * torch.sigmoid(self.mix(y))).flatten(2).transpose(1, 2))


def _highway(make: Callable[[int], nn.Module], **settings) -> Callable[[E3VABackbone], None]:
    settings = {"taps": "block", "form": "parallel", **settings}

    def change(backbone: E3VABackbone) -> None:
        preset = backbone.trunk.preset
        backbone.taps = settings["taps"]
        backbone.highway = Highway(preset.dims, preset.depths, make_adapter=make, **settings)

    return change


def _second_pass(rank: int, second: int, kernel: int, **settings) -> Callable[[E3VABackbone], None]:
    """After a stage's adapters one more, J, reads its joined map: ``h ← h + J(x + h)``."""

    def change(backbone: E3VABackbone) -> None:
        _highway(partial(DepthwiseConvAdapter, rank=rank), **settings)(backbone)
        for stage, dim in zip(backbone.highway.stages, backbone.trunk.preset.dims, strict=True):
            stage.second = DepthwiseConvAdapter(dim, second, kernel)
            stage.forward = MethodType(_stage_with_second_pass, stage)

    return change


def _stage_with_second_pass(self, stage, h):
    h = type(self).forward(self, stage, h)
    return h + self.second(stage.out + h, stage.height, stage.width)


def _feedback(backbone: E3VABackbone) -> None:
    """The trunk's next stage starts from what the highway has changed; gradients pass it by."""
    backbone.forward = MethodType(_forward_with_feedback, backbone)


def _forward_with_feedback(self, images: Tensor) -> dict[str, Tensor]:
    trunk, outputs, h = self.trunk, [], None
    x = trunk._run(trunk._embed, images, None)
    for index, layer in enumerate(trunk.layers):
        if h is not None:
            x, h = x + h.detach().view_as(x), h - h.detach()
        stage = trunk._run(layer, x, index, self.taps)
        out, h = self.highway.advance(stage, h, layer.downsample)
        outputs.append(out)
        if stage.merged is not None:
            x = stage.merged.unflatten(1, (-(-stage.height // 2), -(-stage.width // 2)))
    return dict(zip(self.out_features, outputs, strict=True))


def _feedback_parallel(backbone: E3VABackbone) -> None:
    _highway(_MIXING)(backbone)
    _feedback(backbone)


_MIXING = partial(DepthwiseConvAdapter, rank=10)
_RANK_4 = partial(
    DualLowRankAdapter, rank=4
)  # the paper's adapters, two a block: as many parameters


def _ranks(*ranks: int) -> Callable[[int], nn.Module]:
    """An adapter maker with a rank for each stage of the demonstration's trunk."""
    return lambda dim: DepthwiseConvAdapter(dim, ranks[(dim // 24).bit_length() - 1])


CHANGES: dict[str, tuple[str, Callable[[E3VABackbone], None]]] = {
    "chain": ("a chain: the default", _highway(_MIXING, form="chain")),
    "chain 1x1": (
        "a chain, 1×1: no neighbours",
        _highway(partial(DepthwiseConvAdapter, rank=10, kernel=1), form="chain"),
    ),
    "parallel": ("side by side: 1 normed tap a block, 5×5, rank 10", _highway(_MIXING)),
    "second pass": ("second pass 7×7, ranks 6 and 6", _second_pass(6, 6, 7)),
    "second 5x5": ("second pass 5×5, ranks 6 and 6", _second_pass(6, 6, 5)),
    "second 3 10": ("second pass 7×7, ranks 3 and 10", _second_pass(3, 10, 7)),
    "second two taps": (
        "second pass 7×7, ranks 3 (2 taps a block) and 6",
        _second_pass(3, 6, 7, taps="residual"),
    ),
    "second chain": ("a chain and a second pass 7×7, rank 6", _second_pass(6, 6, 7, form="chain")),
    "feedback": ("the trunk's next stage sees the highway", _feedback_parallel),
    "two taps": (
        "2 taps a block, rank 5",
        _highway(partial(DepthwiseConvAdapter, rank=5), taps="residual"),
    ),
    "kernel 3": ("3×3", _highway(partial(DepthwiseConvAdapter, rank=10, kernel=3))),
    "no mixing": ("1×1: no neighbours", _highway(partial(DepthwiseConvAdapter, rank=10, kernel=1))),
    "no norm": ("taps not normed", _highway(partial(NotNormed, rank=10))),
    "gated": ("a gate instead of GELU", _highway(partial(Gated, rank=10))),
    "rank grows": ("ranks 4, 6, 8, 12 from stage to stage", _highway(_ranks(4, 6, 8, 12))),
    "dual": ("paper's adapters, 2 residual taps", _highway(_RANK_4, taps="residual")),
    "dual normed": (
        "paper's adapters, 2 residual taps, normed",
        _highway(partial(Normed, make=_RANK_4), taps="residual"),
    ),
    "sublayer": ("paper's adapters, 2 sublayer taps", _highway(_RANK_4, taps="sublayer")),
}
CANDIDATES = {
    name: Method(title, {"rank": 10}, change=change) for name, (title, change) in CHANGES.items()
}
ALL = METHODS | CANDIDATES
