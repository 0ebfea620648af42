"""The default adapter: a bottleneck that mixes each token with its neighbors."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.normalize import normalize
from ...utils.errors import UserError
from ..registry import register_adapter_kind


class DepthwiseConvAdapter(nn.Module):
    """Bottleneck adapter with a depthwise convolution over the map of tokens.

    It computes, with the mean μ and the standard deviation σ of a token z::

        y = D · (z − μ) / σ + b_d
        A(z) = σ · (U · GELU(y + K * y) + b_u)

    D maps C to r channels and U maps r to C. K is a depthwise convolution, as in adapters for dense
    prediction (Conv-Adapter, arXiv 2208.07463; Mona, arXiv 2311.15010). The residual stream is
    several times as large in the last stages as in the first. Dividing by σ, and multiplying by it
    at the end, lets an update of U change each stage by the same share, so one learning rate fits
    all of them. U, b_u and K start at zero, so a new adapter adds nothing.

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
        self.conv = nn.Conv2d(rank, rank, kernel, padding=kernel // 2, groups=rank)
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        nn.init.zeros_(self.down.bias)
        for module in (self.conv, self.up):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        normed, std = normalize(z)
        y = self.down(normed).transpose(1, 2).unflatten(2, (height, width))
        inner = F.gelu(y + self.conv(y)).flatten(2).transpose(1, 2)
        # Scaling the bottleneck keeps less for the backward pass than scaling the result.
        return F.linear(std * inner, self.up.weight) + std * self.up.bias


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {"rank": tensors["down.weight"].shape[0], "kernel": tensors["conv.weight"].shape[-1]}


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
