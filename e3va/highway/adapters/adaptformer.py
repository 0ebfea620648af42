"""AdaptFormer: a bottleneck of two linear layers with a fixed scale."""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ..option_checks import check_dropout, check_rank
from ..registry import register_adapter_kind


class AdaptFormerAdapter(nn.Module):
    """AdaptFormer, ``A(z) = s · (U · ReLU(D · z + b_d) + b_u)`` (arXiv 2205.13535).

    As in the authors' code (ShoufaChen/AdaptFormer), D starts with Kaiming's uniform distribution
    for a = √5, and U and the biases start at zero, so a new adapter adds nothing. In training a
    share of ReLU's output is dropped.

    Args:
        dim: channels C of the tap.
        rank: width of the bottleneck.
        scale: factor s.
        dropout: share of ReLU's output that is dropped in training.
    """

    def __init__(self, dim: int, rank: int = 64, scale: float = 0.1, dropout: float = 0.1):
        super().__init__()
        check_rank(rank)
        check_dropout(dropout)
        self.scale = scale
        self.down_proj = nn.Linear(dim, rank)
        self.dropout = nn.Dropout(dropout)
        self.up_proj = nn.Linear(rank, dim)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        for zeros in (self.down_proj.bias, self.up_proj.weight, self.up_proj.bias):
            nn.init.zeros_(zeros)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, C]; ``height`` and ``width`` are not used."""
        return self.scale * self.up_proj(self.dropout(F.relu(self.down_proj(z))))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["down_proj.weight"].shape[0]}


register_adapter_kind(
    "adaptformer",
    AdaptFormerAdapter,
    source="arXiv 2205.13535",
    read_options=_read_options,
    inside={"projected": "stream"},
)
