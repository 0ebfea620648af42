"""DTL: a sum of products of low rank beside the trunk."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ..option_checks import check_kernel, check_rank
from ..registry import register_adapter_kind


class DTLSideNetwork(nn.Module):
    """Disentangled Transfer Learning, a compact side network (arXiv 2312.07856).

    The products of low rank of a stage add up, and pass through an activation and, in the form
    called DTL+, through a depthwise convolution K::

        h = h^in + K * s,   s = y · sigmoid(β · y),   y = Σ_l B_l · A_l · z_l

    Rank, β, the starts and the fresh sum of each stage are those of the authors' code for Swins
    (heekhero/DTL). A_l starts with Kaiming's uniform distribution for a = √5 and B_l at zero, so a
    new network adds nothing.

    The authors add K * s to the stream after the trunk's last blocks, which so run within autograd.
    Here nothing goes back into the trunk, and s joins where every highway does. Their products read
    the stream before each block, these the taps. Theirs stand in the last two stages, these in all,
    because each stage is a pyramid level.

    Args:
        dim: channels C of the taps.
        rank: rank of each product.
        beta: factor β.
        kernel: side of K in tokens, an odd number, 5 in DTL+; 0 for no convolution, as in DTL.
        tap_count: number of taps of the stage.
    """

    def __init__(
        self, dim: int, rank: int = 4, beta: float = 100.0, kernel: int = 0, tap_count: int = 1
    ):
        super().__init__()
        check_rank(rank, dim)
        self.beta = beta
        self.down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(tap_count))
        self.up = nn.ModuleList(nn.Linear(rank, dim, bias=False) for _ in range(tap_count))
        for down, up in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        self.conv = None
        if kernel:
            check_kernel(kernel)
            self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)

    def forward(self, taps: list[Tensor], h: Tensor | None, height: int, width: int) -> Tensor:
        """Map taps [B, T, C] and h^in [B, T, C] (None for zero) to h [B, T, C]."""
        products = (up(down(z)) for z, down, up in zip(taps, self.down, self.up, strict=True))
        y = sum(products)
        offset = y * torch.sigmoid(self.beta * y)
        if self.conv is not None:
            offset = to_tokens(self.conv(to_map(offset, height, width)))
        return offset if h is None else h + offset


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    kernel = tensors["conv.weight"].shape[-1] if "conv.weight" in tensors else 0
    return {"rank": len(tensors["down.0.weight"]), "kernel": kernel}


register_adapter_kind(
    "dtl", DTLSideNetwork, source="after arXiv 2312.07856", read_options=_read_options, inside={}
)
