"""The paper's adapter: two products of low rank around a bottleneck."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..option_checks import check_divisor, check_rank
from ..registry import register_adapter_kind


class DualLowRankAdapter(nn.Module):
    """Dual low-rank adapter, ``A(z) = U2 · U1 · GELU(D2 · D1 · z + b_d) + b_u``.

    The paper's adapter (arXiv 2306.09729). The matrices map between these widths: D1 from C to r,
    D2 from r to C/q, U1 from C/q to r, U2 from r to C. U2 and b_u start at zero, so a new adapter
    adds nothing. The other matrices start with variance 1/fan_in, so the scale of the signal that
    reaches U2 does not depend on C, r or q.

    Args:
        dim: channels C of the tap.
        rank: inner width r of both products.
        reduction: factor q between C and the width of the bottleneck, a divisor of C.
    """

    def __init__(self, dim: int, rank: int = 16, reduction: int = 4):
        super().__init__()
        check_rank(rank)
        check_divisor("reduction", reduction, dim)
        hidden = dim // reduction
        self.d1 = nn.Linear(dim, rank, bias=False)
        self.d2 = nn.Linear(rank, hidden)
        self.u1 = nn.Linear(hidden, rank, bias=False)
        self.u2 = nn.Linear(rank, dim)
        for linear in (self.d1, self.d2, self.u1):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.d2.bias)
        nn.init.zeros_(self.u2.weight)
        nn.init.zeros_(self.u2.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, C]; ``height`` and ``width`` are not used."""
        return self.u2(self.u1(F.gelu(self.d2(self.d1(z)))))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    rank, dim = tensors["d1.weight"].shape
    return {"rank": rank, "reduction": dim // tensors["d2.weight"].shape[0]}


register_adapter_kind(
    "dual_low_rank",
    DualLowRankAdapter,
    source="arXiv 2306.09729",
    read_options=_read_options,
)
