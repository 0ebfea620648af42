"""LoRand: a bottleneck whose matrices are sums of low-rank products."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..option_checks import check_divisor, check_rank
from ..registry import register_adapter_kind


class _LowRankSum(nn.Module):
    """Linear layer with the matrix ``W = Σ_i (P_i · K_i · Q_i)ᵀ``, i = 1..branches."""

    def __init__(self, inputs: int, outputs: int, branches: int, rank: int):
        super().__init__()
        self.p = nn.Parameter(torch.empty(branches, inputs, rank))
        self.k = nn.Parameter(torch.empty(branches, rank, rank))
        self.q = nn.Parameter(torch.empty(branches, rank, outputs))
        for matrices in (self.p, self.k, self.q):
            for matrix in matrices:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-1, 1) / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.p @ self.k @ self.q).sum(0).t(), self.bias)


class LoRandAdapter(nn.Module):
    """LoRand, ``A(z) = U · GELU(D · z + b_d) + b_u`` (CVPR 2023, Yin et al., "1% VS 100%").

    D and U are sums of products ``P_i · K_i · Q_i`` with the inner width r. As in the authors' code
    (DongshuoYin/CoLin), these matrices start with Kaiming's uniform distribution for a = √5, and
    the biases between ±1/√(inputs). So a new adapter adds something, unless ``zero_start`` is set.

    Args:
        dim: channels C of the tap.
        rank: inner width r of the products.
        branches: number of products in a sum.
        reduction: quotient of C and the width of the bottleneck, a divisor of C.
        zero_start: whether the Q_i of U and b_u start at zero, so that a new adapter adds nothing.
    """

    def __init__(
        self,
        dim: int,
        rank: int = 8,
        branches: int = 4,
        reduction: int = 2,
        zero_start: bool = False,
    ):
        super().__init__()
        check_rank(rank)
        check_divisor("reduction", reduction, dim)
        self.down = _LowRankSum(dim, dim // reduction, branches, rank)
        self.up = _LowRankSum(dim // reduction, dim, branches, rank)
        if zero_start:
            nn.init.zeros_(self.up.q)
            nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, C]; ``height`` and ``width`` are not used."""
        return self.up(F.gelu(self.down(z)))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    branches, dim, rank = tensors["down.p"].shape
    hidden = tensors["down.bias"].numel()
    return {"rank": rank, "branches": branches, "reduction": dim // hidden}


register_adapter_kind(
    "lorand", LoRandAdapter, source="CVPR 2023, 1% VS 100%", read_options=_read_options
)
