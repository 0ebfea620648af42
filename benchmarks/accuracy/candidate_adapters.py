"""Adapters of the candidates: the default adapter with other parts."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3va.highway.adapters.conv import DepthwiseConvAdapter
from e3va.ops.normalize import normalize
from e3va.swin.modules import SwinBlock

FLOOR = 0.1  # of a component's variance, see FittedDown
MakeAdapter = Callable[[int, int], nn.Module]  # (dim, rank) -> adapter


class PartsAdapter(DepthwiseConvAdapter):
    """The default adapter with another D or K.

    Args:
        dim: channels C of the tap.
        rank: width r of the bottleneck.
        kernel: side of K in tokens.
        down: module for D, from [..., C] to [..., r]; None for the default.
        mix: module for K, from [B, r, H, W] to [B, r, H, W]; None for the default.
        norm: whether the adapter norms its input.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        kernel: int = 5,
        *,
        down: nn.Module | None = None,
        mix: nn.Module | None = None,
        norm: bool = True,
    ):
        super().__init__(dim, rank, kernel)
        self.down, self.mix, self.norm = down or self.down, mix or self.mix, norm

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map [B, T, C] to [B, T, C]."""
        y = self.down(self.normed(z)).transpose(1, 2).unflatten(2, (height, width))
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))

    def normed(self, z: Tensor) -> Tensor:
        """Return D's input [B, T, C]."""
        return normalize(z) if self.norm else z


class FittedDown(nn.Module):
    """A projection D that starts as the principal components of its first training batch.

    Swin's features are narrow: a few components hold nearly all of their variance, and the outputs
    of a random D are all much the same. Here a component is divided by its standard deviation, but
    its variance counts as at least FLOOR times the mean of all.

    Args:
        dim: channels C.
        rank: width r, at most C.
        principal: False for random orthogonal rows.
        frozen: whether D stays as it starts; its bias trains.
    """

    def __init__(self, dim: int, rank: int, principal: bool = True, frozen: bool = True):
        super().__init__()
        weight = nn.init.orthogonal_(torch.empty(rank, dim))
        if frozen:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(rank))
        self.register_buffer("fitted", torch.tensor(not principal))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., C] to [..., r]."""
        if self.training and not self.fitted:
            self._fit(x)
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        mean = rows.mean(0)
        covariance = (rows - mean).t() @ (rows - mean) / len(rows)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        rank = len(self.weight)
        scale = variances.clamp_min(FLOOR * variances.mean())[-rank:].rsqrt()
        self.weight.copy_((vectors[:, -rank:] * scale).t())
        self.bias.copy_(-self.weight @ mean)
        self.fitted.fill_(True)


class Kernels(nn.ModuleList):
    """The sum of depthwise convolutions with several sides, times a factor."""

    def __init__(self, rank: int, sides: Sequence[int], factor: float = 1.0):
        super().__init__(
            nn.Conv2d(rank, rank, side, padding=side // 2, groups=rank) for side in sides
        )
        self.factor = factor
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, y: Tensor) -> Tensor:
        """Map [B, r, H, W] to [B, r, H, W]."""
        return sum(conv(y) for conv in self) * self.factor


class WindowMix(SwinBlock):
    """Window attention in the bottleneck, in place of K: that of a Swin block, without its MLP."""

    def __init__(self, rank: int, heads: int, window: int = 7):
        super().__init__(rank, heads, window, shift=0, mlp_ratio=1)
        del self.norm2, self.mlp

    def forward(self, y: Tensor) -> Tensor:
        """Map [B, r, H, W] to [B, r, H, W]."""
        return self.window_attention(y.permute(0, 2, 3, 1), None).permute(0, 3, 1, 2)


class MonaAdapter(PartsAdapter):
    """Mona's adapter (arXiv 2311.15010): a norm beside the plain input, three kernels, and a 1×1.

    It differs from Mona at the start: it reads only the normed input, and U is zero.
    """

    def __init__(self, dim: int, rank: int):
        super().__init__(dim, rank, mix=Kernels(rank, (3, 5, 7), 1 / 3))
        self.normed_scale = nn.Parameter(torch.ones(dim))
        self.plain_scale = nn.Parameter(torch.zeros(dim))
        self.project = nn.Conv2d(rank, rank, 1)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map [B, T, C] to [B, T, C]."""
        y = self.down(self.normed(z)).transpose(1, 2).unflatten(2, (height, width))
        y = y + self.mix(y)
        y = y + self.project(y)
        return self.up(F.gelu(y).flatten(2).transpose(1, 2))

    def normed(self, z: Tensor) -> Tensor:
        """Return the scaled sum [B, T, C] of the normed and the plain input."""
        return normalize(z) * self.normed_scale + z * self.plain_scale


def dense(dim: int, rank: int) -> nn.Module:
    """Build an adapter whose K is a 3×3 convolution over all channels of the bottleneck."""
    mix = nn.Conv2d(rank, rank, 3, padding=1)
    nn.init.zeros_(mix.weight)
    nn.init.zeros_(mix.bias)
    return PartsAdapter(dim, rank, mix=mix)


def several(*sides: int) -> MakeAdapter:
    """Return a function that builds adapters with several kernels, which add up."""
    return lambda dim, rank: PartsAdapter(dim, rank, mix=Kernels(rank, sides))


def attention(dim: int, rank: int) -> nn.Module:
    """Build an adapter with window attention in heads of at most eight channels."""
    heads = next(n for n in range(-(-rank // 8), rank + 1) if rank % n == 0)
    return PartsAdapter(dim, rank, mix=WindowMix(rank, heads))


def fitted(principal: bool = True, frozen: bool = True, norm: bool = True) -> MakeAdapter:
    """Return a function that builds adapters with :class:`FittedDown`, of rank C at most."""

    def make(dim: int, rank: int) -> nn.Module:
        rank = min(rank, dim)
        return PartsAdapter(dim, rank, down=FittedDown(dim, rank, principal, frozen), norm=norm)

    return make
