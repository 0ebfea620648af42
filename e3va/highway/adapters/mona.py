"""Mona: a bottleneck with three depthwise convolutions and a scaled norm."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ..option_checks import check_dropout, check_rank
from ..registry import ON_STREAM, register_adapter_kind

_KERNELS = (3, 5, 7)


class MonaAdapter(nn.Module):
    """Mona, the multi-cognitive visual adapter (arXiv 2311.15010).

    It computes::

        y = D · (γ1 ⊙ LN(z) + γ2 ⊙ z) + b_d
        v = y + (K3 * y + K5 * y + K7 * y) / 3
        A(z) = U · GELU(v + P · v) + b_u

    K3, K5 and K7 are depthwise convolutions with these sides, P is a 1×1 convolution; all four have
    biases. As in the authors' code (Leiyi-Hu/mona), γ1 starts at 1e-6 and γ2 at 1, D and U with
    deviation 0.02, their biases at zero, and the convolutions as PyTorch initializes them. So a new
    adapter adds a little, unless ``zero_start`` is set. In training a share of GELU's output is
    dropped.

    Args:
        dim: channels C of the tap.
        rank: width of the bottleneck.
        dropout: share of GELU's output that is dropped in training.
        zero_start: whether U starts at zero, so that a new adapter adds nothing.
    """

    def __init__(self, dim: int, rank: int = 64, dropout: float = 0.1, zero_start: bool = False):
        super().__init__()
        check_rank(rank)
        check_dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.gamma_norm = nn.Parameter(torch.full((dim,), 1e-6))
        self.gamma_tap = nn.Parameter(torch.ones(dim))
        self.down = nn.Linear(dim, rank)
        self.convs = nn.ModuleList(
            nn.Conv2d(rank, rank, side, padding=side // 2, groups=rank) for side in _KERNELS
        )
        self.pointwise = nn.Conv2d(rank, rank, 1)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, dim)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if zero_start:
            nn.init.zeros_(self.up.weight)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        y = to_map(self.down(self.norm(z) * self.gamma_norm + z * self.gamma_tap), height, width)
        v = y + sum(conv(y) for conv in self.convs) / len(self.convs)
        inner = to_tokens(v + self.pointwise(v))
        return self.up(self.dropout(F.gelu(inner)))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["down.weight"].shape[0]}


register_adapter_kind(
    "mona", MonaAdapter, source="arXiv 2311.15010", read_options=_read_options, inside=ON_STREAM
)
