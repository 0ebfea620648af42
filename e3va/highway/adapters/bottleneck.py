"""The bottleneck adapter: two linear layers with GELU between them."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..option_checks import check_rank
from ..registry import register_adapter_kind


class BottleneckAdapter(nn.Module):
    """Bottleneck adapter, ``A(z) = U · GELU(D · z + b_d) + b_u`` (arXiv 1902.00751, figure 2).

    D starts with deviation 1/√C, and U and the biases at zero, so a new adapter adds nothing.

    Args:
        dim: channels C of the tap.
        rank: width of the bottleneck.
    """

    def __init__(self, dim: int, rank: int = 16):
        super().__init__()
        check_rank(rank)
        self.down = nn.Linear(dim, rank)
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=dim**-0.5)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, C]; ``height`` and ``width`` are not used."""
        return self.up(F.gelu(self.down(z)))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["down.weight"].shape[0]}


register_adapter_kind(
    "bottleneck", BottleneckAdapter, source="arXiv 1902.00751", read_options=_read_options
)
