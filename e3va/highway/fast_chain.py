"""The fast form of a chain of conv adapters.

For each block it keeps the normed tap in few bits and, unless these are 8, the bottleneck's input;
autograd would keep the normed tap and four maps of the bottleneck's width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.normalize import EPS
from ..ops.products import Product
from ..ops.saved_activation import SavedActivation
from .adapters.conv import DepthwiseConvAdapter, matrix_scale
from .fast_forms import TokenMap, register_fast_form


def run_chain(
    adapters: Sequence[DepthwiseConvAdapter],
    taps: Sequence[Tensor],
    size: TokenMap,
    h: Tensor | None,
) -> Tensor:
    """Compute ``h ← h + A(z + h)`` for each adapter A and tap z: h [B, T, C] in the wide type."""
    parameters = [p for adapter in adapters for p in adapter.parameters()]
    with torch.autocast(taps[0].device.type, enabled=False):
        return _Chain.apply(size, h, len(taps), *taps, *parameters)


class _Block:
    """One adapter of the chain, with D, K, U and the biases in the narrow type."""

    def __init__(self, size: TokenMap, parameters: Sequence[Tensor]):
        self.size = size
        matrices = [p * matrix_scale(p) if p.dim() > 1 else p for p in parameters]
        down, self.down_bias, conv, conv_bias, up, self.up_bias = matrices
        self.down_weight, self.up_weight = down.to(size.narrow), up.to(size.narrow)
        self.down = Product(down, self.down_bias, size.narrow)
        # y + K * y is one convolution: K with one added to its centre.
        centre = torch.zeros_like(conv)
        centre[:, :, conv.shape[2] // 2, conv.shape[3] // 2] = 1
        self.conv, self.conv_bias = (conv + centre).to(size.narrow), conv_bias.to(size.narrow)

    def bottleneck(self, y: Tensor) -> Tensor:
        """Map the convolution's input [T, r] to its output [T, r], GELU's input."""
        maps, padding = self.size.as_map(y), self.conv.shape[2] // 2
        mixed = F.conv2d(maps, self.conv, self.conv_bias, padding=padding, groups=len(self.conv))
        return self.size.as_rows(mixed)

    def forward(
        self, tap: Tensor, h: Tensor | None
    ) -> tuple[Tensor, SavedActivation | None, Tensor, Tensor]:
        """Run the adapter on a tap [T, C] and h [T, C], which changes in place.

        Return the new h, the kept normed tap (None without gradients), 1/std [T, 1] and y [T, r].
        """
        size, up = self.size, Product(self.up_weight, self.up_bias, self.size.narrow)
        kept = SavedActivation.empty(size.keep, tap, size.wide) if size.keep else None
        y = tap.new_empty(len(tap), len(self.conv), dtype=size.narrow)
        inverse_std = tap.new_empty(len(tap), 1, dtype=size.wide)
        for rows in size.chunks(tap):
            z = tap[rows].to(size.wide)
            z = z if h is None else z + h[rows]
            normed, _, inverse_std[rows] = torch.native_layer_norm(z, z.shape[1:], None, None, EPS)
            if kept is not None:
                kept.put(rows, normed)
            y[rows] = self.down(normed.to(size.narrow))
        inner = F.gelu(self.bottleneck(y))
        out = torch.empty_like(tap, dtype=size.wide) if h is None else h
        for rows in size.chunks(tap):
            offset = up(inner[rows]) / inverse_std[rows]
            out[rows] = offset if h is None else h[rows] + offset
        return out, kept, inverse_std, y

    def backward(
        self,
        gradient: Tensor,
        kept: SavedActivation,
        inverse_std: Tensor,
        y: Tensor | None,
        need_input: bool,
    ) -> list[Tensor]:
        """Compute the gradients of the parameters from that of the new h [T, C].

        With ``need_input``, ``gradient`` becomes that of the old h in place. The other arguments
        are results of :meth:`forward`; y is recomputed if it is None.
        """
        size = self.size
        if y is None:
            y = gradient.new_empty(len(gradient), len(self.conv), dtype=size.narrow)
            for rows in size.chunks(gradient):
                y[rows] = self.down(kept.get(rows).to(size.narrow))
        mixed = self.bottleneck(y)
        inner = F.gelu(mixed)
        # Gradients of U and of its input.
        up = torch.zeros_like(self.up_weight, dtype=size.wide)
        d_inner = torch.empty_like(inner)
        through_up = Product(self.up_weight.t().contiguous(), None, size.narrow)
        for rows in size.chunks(gradient):
            part = (gradient[rows] / inverse_std[rows]).to(size.narrow)
            up += part.t() @ inner[rows]
            d_inner[rows] = through_up(part)
        up_bias = (1 / inverse_std).t().matmul(gradient).squeeze(0)
        d_std = (d_inner * inner).sum(1, keepdim=True, dtype=size.wide) * inverse_std
        d_std += (gradient @ self.up_bias.to(size.wide))[:, None]
        d_mixed = torch.ops.aten.gelu_backward(d_inner, mixed)
        d_y, conv, conv_bias = self._convolution_backward(d_mixed, y)
        down = torch.zeros_like(self.down_weight, dtype=size.wide)
        for rows in size.chunks(gradient):
            normed = kept.get(rows)
            down += d_y[rows].t() @ normed.to(size.narrow)
            if need_input:
                stds = inverse_std[rows], d_std[rows]
                self._norm_backward(gradient[rows], normed, *stds, d_y[rows], y[rows])
        wide = [t.to(size.wide) for t in (d_y.sum(0, dtype=size.wide), conv, conv_bias)]
        return [down, *wide, up, up_bias]

    def _convolution_backward(self, gradient: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, side = self.size, self.conv.shape[2] // 2
        through = self.conv.flip(2, 3)  # the transpose: a convolution too, as K's side is odd
        d_y = F.conv2d(size.as_map(gradient), through, padding=side, groups=len(through))
        # On a CPU the weight gradient of a depthwise convolution takes several times as long in
        # bfloat16 (benchmarks/operators.py).
        kind = size.wide if gradient.device.type == "cpu" else size.narrow
        maps, d_mixed = size.as_map(y.to(kind)), size.as_map(gradient.to(kind))
        weight = torch.nn.grad.conv2d_weight(
            maps, self.conv.shape, d_mixed, padding=side, groups=len(through)
        )
        return size.as_rows(d_y), weight, gradient.sum(0, dtype=size.wide)

    def _norm_backward(
        self,
        gradient: Tensor,
        normed: Tensor,
        inverse_std: Tensor,
        d_std: Tensor,
        d_y: Tensor,
        y: Tensor,
    ) -> None:
        """Add the gradients through the normed tap n and through std.

        They are ``(g − mean(g) − n · mean(g · n)) / std`` with g = d_y · D, and ``n · d_std / C``.
        Both sums over the channels are computed as sums over the bottleneck: the sum of g · n
        equals the sum of d_y · (D · n).
        """
        wide, channels = self.size.wide, normed.shape[1]
        scaled = d_y.to(wide) * (inverse_std / channels)
        mean = scaled @ self.down_weight.sum(1, dtype=wide)
        with_normed = (scaled * (y.to(wide) - self.down_bias)).sum(1, keepdim=True)
        through = (scaled * channels).to(d_y.dtype) @ self.down_weight
        gradient += through
        gradient.sub_(mean[:, None]).addcmul_(normed, with_normed - d_std / channels, value=-1)


class _Chain(torch.autograd.Function):
    """See :func:`run_chain`."""

    @staticmethod
    def forward(ctx, size: TokenMap, h: Tensor | None, count: int, *tensors: Tensor) -> Tensor:
        taps, parameters = tensors[:count], tensors[count:]
        shape = taps[0].shape
        h = None if h is None else h.to(size.wide).flatten(0, 1).clone()
        saved: list[Tensor] = []
        ctx.size, ctx.count, ctx.has_input = size, count, h is not None
        for k, tap in enumerate(taps):
            block = _Block(size, parameters[6 * k : 6 * k + 6])
            h, kept, inverse_std, y = block.forward(tap.flatten(0, 1), h)
            if kept is not None:
                saved += [inverse_std, *kept.tensors, *([] if size.keep == "int8" else [y])]
        ctx.save_for_backward(*parameters, *saved)
        return h.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        size, count, tensors = ctx.size, ctx.count, ctx.saved_tensors
        parameters, saved = tensors[: 6 * count], tensors[6 * count :]
        shape = gradient.shape
        gradient = gradient.to(size.wide).flatten(0, 1).clone()
        each = len(saved) // count
        own: list[Tensor] = []
        for k in reversed(range(count)):
            block = _Block(size, parameters[6 * k : 6 * k + 6])
            inverse_std, *rest = saved[each * k : each * (k + 1)]
            y = None if size.keep == "int8" else rest.pop()
            kept = SavedActivation(size.keep, rest, size.wide)
            need_input = ctx.has_input or k > 0
            own = block.backward(gradient, kept, inverse_std, y, need_input) + own
        own = [_of_parameter(p, g) for p, g in zip(parameters, own, strict=True)]
        into = gradient.view(shape) if ctx.has_input else None
        return None, into, None, *([None] * count), *own


def _of_parameter(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Convert the gradient of D, b_d, K, b_K, U or b_u to that of the adapter's parameter."""
    if parameter.dim() > 1:
        gradient = gradient * matrix_scale(parameter)
    return gradient.to(parameter.dtype).view_as(parameter)


register_fast_form("chain", DepthwiseConvAdapter, run_chain)
