"""The default adapter: a bottleneck that mixes each token with its neighbors."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.normalize import normalize
from ...utils.errors import UserError
from ..registry import register_adapter_kind


class DepthwiseConvAdapter(nn.Module):
    """Bottleneck adapter with a depthwise convolution over the map of tokens.

    It computes::

        y = D · LN(z) + b_d
        A(z) = U · GELU(y + K * y) + b_u

    D maps C to r channels and U maps r to C. K is a depthwise convolution, as in adapters for dense
    prediction (Conv-Adapter, arXiv 2208.07463; Mona, arXiv 2311.15010). LN has no parameters; with
    it the adapter does not depend on the scale of the residual stream, which grows from block to
    block. U, b_u and K start at zero, so a new adapter adds nothing.

    Args:
        dim: channels C of the tap.
        rank: width r of the bottleneck; by default 3/8 of the first stage's channels in the kind
            ``conv``, and 4/3 of them in the kind ``wide_conv``.
        kernel: side of K in tokens, an odd number.
    """

    def __init__(self, dim: int, rank: int = 32, kernel: int = 5):
        super().__init__()
        if rank < 1:
            raise UserError(f"adapter rank {rank}: expected a whole number of at least 1")
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"adapter kernel {kernel}: expected an odd number")
        self.down = nn.Linear(dim, rank)
        self.mix = nn.Conv2d(rank, rank, kernel, padding=kernel // 2, groups=rank)
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        nn.init.zeros_(self.down.bias)
        for module in (self.mix, self.up):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        y = self.down(normalize(z)).transpose(1, 2).unflatten(2, (height, width))
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["down.weight"].shape[0], "kernel": tensors["mix.weight"].shape[-1]}


def _register(name: str, default_rank: Callable[[int], int]) -> None:
    """Register a kind with its default rank, a function of C_0."""
    register_adapter_kind(
        name,
        DepthwiseConvAdapter,
        source="after arXiv 2208.07463 and arXiv 2311.15010",
        defaults={"rank": default_rank},
        read_options=_read_options,
    )


_register("conv", lambda embed_dim: max(1, embed_dim * 3 // 8))
_register("wide_conv", lambda embed_dim: embed_dim * 4 // 3)
