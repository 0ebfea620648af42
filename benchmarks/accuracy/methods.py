"""The ways of tuning that are compared: what each trains in the backbone, besides pyramid norms.

Every method has the same trunk, neck and heads, and starts from the same numbers. What a method
adds starts as the identity. The ranks of LoRA, bottleneck adapters and highways are the largest
that train at most 1.5% of the backbone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from e3va import E3VABackbone, SwinPreset
from e3va.swin.trunk import SwinTrunk
from e3va.utils.optional import require


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        title: name in tables and pictures.
        highway: recipe, or mapping of a recipe and changes, see :class:`e3va.E3VABackbone`.
        prepare: function that changes a trunk in which everything trains, and decides which of its
            parameters train; None for no change.
        backbone: function that builds a backbone that no config describes; None for the backbone
            of ``highway``.
        searched: whether the method has its own learning rate; otherwise everything trains at the
            learning rate of the heads.
    """

    title: str
    highway: str | Mapping[str, Any] = "e3va_chain"
    prepare: Callable[[SwinTrunk], None] | None = None
    backbone: Callable[[SwinPreset], E3VABackbone] | None = None
    searched: bool = True


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


def lora(rank: int, target_modules: Sequence[str] = ("qkv", "fc1")) -> Callable[[SwinTrunk], None]:
    """LoRA (arXiv 2106.09685) of Hugging Face peft, by default on the projections that widen."""

    def prepare(trunk: SwinTrunk) -> None:
        peft = require("peft", "the method lora")
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=[*target_modules])
        peft.inject_adapter_in_model(config, trunk)

    return prepare


class Bottleneck(nn.Module):
    """A sublayer followed by an adapter with a skip connection (arXiv 1902.00751, figure 2)."""

    def __init__(self, sublayer: nn.Module, dim: int, rank: int):
        super().__init__()
        self.sublayer = sublayer
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=dim**-0.5)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = self.sublayer(*inputs)
        return x + self.up(F.gelu(self.down(x)))


def bottleneck(rank: int) -> Callable[[SwinTrunk], None]:
    """Bottleneck adapters after attention and after the MLP of every block."""

    def prepare(trunk: SwinTrunk) -> None:
        trunk.requires_grad_(False)
        for layer, dim in zip(trunk.layers, trunk.preset.dims, strict=True):
            for block in layer.blocks:
                block.attn = Bottleneck(block.attn, dim, rank)
                block.mlp = Bottleneck(block.mlp, dim, rank)

    return prepare


PAPER = {"recipe": "e3va", "rank": 4}
METHODS = {
    "full": Method("full fine-tuning", "full"),
    "frozen": Method("frozen backbone", "frozen", searched=False),
    "norms": Method("norms only", "full", _norms),
    "biases": Method("biases only", "full", _biases),
    "last stage": Method("last stage only", "full", _last_stage),
    "lora": Method("LoRA, rank 3", "full", lora(3)),
    "bottleneck": Method("bottleneck adapters, rank 6", "full", bottleneck(6)),
    "e3va_chain": Method("E³VA", {"rank": 10}),
    "offset": Method(
        "E³VA, paper's adapters, offset form",
        {**PAPER, "taps": "residual", "downsample": "offset"},
    ),
    "e3va": Method("E³VA as in the paper", PAPER),
}
DEFAULT = "e3va_chain"
