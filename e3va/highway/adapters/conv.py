"""The default adapter: a bottleneck that mixes each token with its neighbors."""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ...ops.normalize import normalize
from ..option_checks import check_kernel, check_rank
from ..registry import register_adapter_kind

_GAIN = 8.0


class DepthwiseConvAdapter(nn.Module):
    """Bottleneck adapter with a depthwise convolution over the map of tokens.

    It computes, with the mean μ and the standard deviation σ of a token z::

        y = D · (z − μ) / σ + b_d
        A(z) = σ · (U · GELU(y + K * y) + b_u)

    D maps C to r channels and U maps r to C. K is a depthwise convolution, as in adapters for dense
    prediction (Conv-Adapter, arXiv 2208.07463; Mona, arXiv 2311.15010). U, b_u and K start at zero,
    so a new adapter adds nothing.

    One learning rate fits all stages and ranks, for two reasons. The residual stream is several
    times as large in the last stages as in the first; because of the factor σ, an update of U
    changes each stage by the same share. And a step of Adam moves every weight by about the
    learning rate, which changes the products of a wide matrix more; so the weights of the layers
    ``down``, ``conv`` and ``up`` are D, K and U times an eighth of the root of their fan-in (C,
    kernel², r), after the equalized learning rate of arXiv 1710.10196. The eighth only
    sets the unit of the learning rate.

    Args:
        dim: channels C of the tap.
        rank: width r of the bottleneck; by default 3/8 of the first stage's channels in the kind
            ``conv``, and 4/3 of them in the kind ``wide_conv``.
        kernel: side of K in tokens, an odd number.
    """

    def __init__(self, dim: int, rank: int = 32, kernel: int = 5):
        super().__init__()
        check_rank(rank)
        check_kernel(kernel)
        self.down = nn.Linear(dim, rank)
        self.conv = nn.Conv2d(rank, rank, kernel, padding=kernel // 2, groups=rank)
        self.up = nn.Linear(rank, dim)
        nn.init.normal_(self.down.weight, std=1 / _GAIN)
        nn.init.zeros_(self.down.bias)
        for module in (self.conv, self.up):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        normed, std = normalize(z)
        down, conv, up = (
            layer.weight * matrix_scale(layer.weight) for layer in (self.down, self.conv, self.up)
        )
        y = to_map(F.linear(normed, down, self.down.bias), height, width)
        mixed = F.conv2d(y, conv, self.conv.bias, padding=conv.shape[-1] // 2, groups=len(conv))
        inner = to_tokens(F.gelu(y + mixed))
        # Scaling the bottleneck keeps less for the backward pass than scaling the result.
        return F.linear(std * inner, up) + std * self.up.bias


def matrix_scale(weight: Tensor) -> float:
    """Return the quotient of a matrix D, K or U and the layer's weight."""
    return _GAIN * weight[0].numel() ** -0.5


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
