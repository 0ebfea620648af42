"""MEA: attention along rows and columns, an MLP and a convolution behind one norm."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ...utils.errors import UserError
from ..option_checks import check_rank
from ..registry import ON_STREAM, register_adapter_kind


class MEAAdapter(nn.Module):
    """The memory-efficient adapter block of META (arXiv 2502.01962), as far as it is known.

    We found no code of it. The abstract says that attention and MLP share one layer norm,
    that attention is cross-shaped, that there is a lightweight convolutional branch, and that the
    block is a cascade over groups of channels. We decided the rest: a tap passes through a
    bottleneck D to r channels and U back to C, so that the adapter is as small as the others. The r
    channels are split into groups x_1..x_n, and with o_0 = 0::

        n_i = LN_i(x_i + o_{i-1})
        o_i = Attention_i(n_i) + MLP_i(n_i) + PW_i(GELU(K_i * n_i))
        A(z) = U · [o_1, …, o_n] + b_u

    The first half of a group's channels attends along the token's row, the other half along its
    column (CSWin, arXiv 2107.00652, with stripes of one token), one head each. K_i is a depthwise
    3×3 convolution, PW_i a 1×1 convolution, MLP_i has a hidden layer of ``mlp_ratio`` times the
    group's width. U and b_u start at zero, so a new adapter adds nothing.

    Args:
        dim: channels C of the tap.
        rank: width r of the bottleneck.
        groups: number n of groups, a divisor of r; a group has an even number of channels.
        mlp_ratio: width of the MLPs' hidden layers, in multiples of a group's width.
    """

    def __init__(self, dim: int, rank: int = 32, groups: int = 2, mlp_ratio: int = 2):
        super().__init__()
        check_rank(rank)
        if groups < 1 or rank % (2 * groups):
            raise UserError(
                f"adapter groups {groups} with rank {rank}: expected an even number of channels in "
                "each of equal groups"
            )
        self.down = nn.Linear(dim, rank)
        self.branches = nn.ModuleList(_Group(rank // groups, mlp_ratio) for _ in range(groups))
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=dim**-0.5)
        for zeros in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zeros)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        outputs, out = [], 0
        for group, x in zip(
            self.branches, self.down(z).chunk(len(self.branches), dim=-1), strict=True
        ):
            out = group(x + out, height, width)
            outputs.append(out)
        return self.up(torch.cat(outputs, dim=-1))


class _Group(nn.Module):
    """Three branches behind one norm, for one group of channels."""

    def __init__(self, dim: int, mlp_ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim)
        )
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.pointwise = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        n = self.norm(x)
        qkv = self.qkv(n).unflatten(1, (height, width)).unflatten(-1, (3, 2, -1))
        by_row, by_column = qkv.unbind(-2)  # each [B, H, W, 3, C/2]
        rows = _attend(by_row)
        columns = _attend(by_column.transpose(1, 2)).transpose(1, 2)
        attended = self.proj(torch.cat((rows, columns), dim=-1).flatten(1, 2))
        local = self.pointwise(F.gelu(self.conv(to_map(n, height, width))))
        return attended + self.mlp(n) + to_tokens(local)


def _attend(qkv: Tensor) -> Tensor:
    """Attend along the third dimension of [B, N, L, 3, D]; return [B, N, L, D]."""
    return F.scaled_dot_product_attention(*qkv.unbind(-2))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    rank = tensors["down.weight"].shape[0]
    hidden, dim = tensors["branches.0.mlp.0.weight"].shape
    return {"rank": rank, "groups": rank // dim, "mlp_ratio": hidden // dim}


register_adapter_kind(
    "mea",
    MEAAdapter,
    source="after arXiv 2502.01962",
    read_options=_read_options,
    inside=ON_STREAM,
)
