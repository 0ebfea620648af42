"""The adapters of the highway: the default one, which mixes neighbours, and the paper's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .errors import UserError

EPS = 1e-5  # LayerNorm's


class MixingAdapter(nn.Module):
    """Bottleneck adapter that sees its tokens' neighbours, the default::

        y = D · LN(z) + b_d
        A(z) = U · GELU(y + K * y) + b_u

    D: C → r, U: r → C; K: a depthwise convolution over the map of tokens, as adapters for dense
    prediction have it (Conv-Adapter, arXiv 2208.07463; Mona, arXiv 2311.15010). LN has no
    parameters: the residual stream that it reads grows from block to block. U, b_u and K start at
    zero, so a new adapter adds nothing.

    Args:
        dim: channels C of the tap.
        rank: r, the width of the bottleneck.
        kernel: side of K, odd.

    Raises:
        UserError: ``rank`` is below 1, or ``kernel`` is even or below 1.
    """

    def __init__(self, dim: int, rank: int = 32, kernel: int = 5):
        super().__init__()
        _check_rank(rank)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"adapter kernel {kernel}: expected an odd number")
        self.down = nn.Linear(dim, rank)
        self.mix = nn.Conv2d(rank, rank, kernel, padding=kernel // 2, groups=rank)
        self.up = nn.Linear(rank, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the zero map."""
        nn.init.normal_(self.down.weight, std=self.down.in_features**-0.5)
        nn.init.zeros_(self.down.bias)
        for module in (self.mix, self.up):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in rows, to its contribution [B, T, C]."""
        y = self.down(_normalise(z)).transpose(1, 2).unflatten(2, (height, width))
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))


class Adapter(nn.Module):
    """The paper's dual low-rank adapter, ``A(z) = U2 · U1 · GELU(D2 · D1 · z + b_d) + b_u``.

    D1: C → r, D2: r → C/q, U1: C/q → r, U2: r → C (arXiv 2306.09729). U2 and b_u
    start at zero, so a new adapter adds nothing; the other factors start with variance 1/fan_in,
    so that the signal that reaches U2 neither vanishes nor grows with C, r or q.

    Args:
        dim: channels C of the tap.
        rank: r, the inner width of both products.
        reduction: q; the bottleneck is C/q wide.

    Raises:
        UserError: ``rank`` is below 1, or ``reduction`` does not divide ``dim``.
    """

    def __init__(self, dim: int, rank: int = 16, reduction: int = 4):
        super().__init__()
        _check_rank(rank)
        if reduction < 1 or dim % reduction:
            raise UserError(
                f"adapter reduction {reduction}: expected a divisor of the {dim} channels"
            )
        hidden = dim // reduction
        self.d1 = nn.Linear(dim, rank, bias=False)
        self.d2 = nn.Linear(rank, hidden)
        self.u1 = nn.Linear(hidden, rank, bias=False)
        self.u2 = nn.Linear(rank, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the zero map."""
        for linear in (self.d1, self.d2, self.u1):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.d2.bias)
        nn.init.zeros_(self.u2.weight)
        nn.init.zeros_(self.u2.bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to its contribution to the highway [B, T, C].

        ``height`` and ``width`` (T = height · width) are part of the call that every adapter
        answers; this one does not need them.
        """
        return self.u2(self.u1(F.gelu(self.d2(self.d1(z)))))


class _Normalise(torch.autograd.Function):
    """LayerNorm without parameters over the last dimension.

    For its backward it keeps its result, which the projection behind it keeps anyway, where
    PyTorch's keeps its argument: one map less for each adapter.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        normed, _, inverse_std = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        ctx.save_for_backward(normed, inverse_std)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        """``(g − mean(g) − n · mean(g · n)) / std``, n the result."""
        normed, inverse_std = ctx.saved_tensors
        means = gradient.mean(-1, keepdim=True), (gradient * normed).mean(-1, keepdim=True)
        return (gradient - means[0] - normed * means[1]) * inverse_std


def _normalise(z: Tensor) -> Tensor:
    if torch.is_autocast_enabled(z.device.type):
        z = z.float()  # as autocast has it for PyTorch's own
    return _Normalise.apply(z)


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise UserError(f"adapter rank {rank}: expected a whole number of at least 1")
