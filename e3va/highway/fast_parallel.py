"""The fast form of K parallel dual low-rank adapters: one batched computation for a stage.

For the backward pass it keeps the taps in few bits and the rank-r products D1 · z. All adapters
receive the same gradient, so one product each passes it into all of them and to all U2.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops.saved_activation import SavedActivation
from .adapters.dual_low_rank import DualLowRankAdapter
from .fast_forms import TokenMap, register_fast_form


def run_parallel(
    adapters: Sequence[DualLowRankAdapter], taps: Sequence[Tensor], size: TokenMap, h: Tensor | None
) -> Tensor:
    """Compute ``h + Σ A_k(z_k)`` [B, T, C] in the wide type, for adapters A_k and taps z_k."""
    # Autograd stacks the factors, and so gives each adapter its part of the stack's gradient.
    factors = map(torch.stack, zip(*(a.parameters() for a in adapters), strict=True))
    with torch.autocast(taps[0].device.type, enabled=False):
        offsets = _Parallel.apply(size, len(taps), *taps, *factors)
    return offsets if h is None else h + offsets


class _Factors:
    """The adapters' matrices, stacked, in the narrow type: D1 [K, r, C], D2 [K, C/q, r] etc."""

    def __init__(self, size: TokenMap, factors: Sequence[Tensor]):
        self.d1, self.d2, self.b_d, self.u1, u2, self.b_u = (f.to(size.narrow) for f in factors)
        self.u2 = u2.transpose(0, 1).flatten(1)  # [C, K · r]: one product adds up all adapters

    def inner(self, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map D1 · z [K, T, r] to GELU's input and output [K, T, C/q] and U1's output [K, T, r]."""
        before = torch.baddbmm(self.b_d[:, None], low, self.d2.transpose(1, 2))
        hidden = F.gelu(before)
        return before, hidden, torch.bmm(hidden, self.u1.transpose(1, 2))


def _side_by_side(x: Tensor) -> Tensor:
    """Return [K, T, r] as [T, K · r]."""
    return x.transpose(0, 1).flatten(1)


class _Parallel(torch.autograd.Function):
    """See :func:`run_parallel`."""

    @staticmethod
    def forward(ctx, size: TokenMap, count: int, *tensors: Tensor) -> Tensor:
        taps, factors = [t.flatten(0, 1) for t in tensors[:count]], tensors[count:]
        own, first = _Factors(size, factors), taps[0]
        out = torch.empty_like(first, dtype=size.wide)
        low = first.new_empty(count, len(first), own.d1.shape[1], dtype=size.narrow)
        for rows in size.chunks(first):
            for z, weight, result in zip(taps, own.d1, low, strict=True):
                torch.mm(z[rows].to(size.narrow), weight.t(), out=result[rows])
            *_, last = own.inner(low[:, rows])
            out[rows] = F.linear(_side_by_side(last), own.u2, own.b_u.sum(0))
        if size.keep:
            kept = [SavedActivation.empty(size.keep, z, size.wide) for z in taps]
            for z, place in zip(taps, kept, strict=True):
                place.put(slice(None), z.to(size.wide))
            ctx.save_for_backward(*factors, low, *(t for place in kept for t in place.tensors))
        ctx.size, ctx.count = size, count
        return out.view(tensors[0].shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        size, count = ctx.size, ctx.count
        factors, (low, *saved) = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        each = len(saved) // count
        kept = [
            SavedActivation(size.keep, saved[each * k : each * (k + 1)], size.wide)
            for k in range(count)
        ]
        own, gradient = _Factors(size, factors), gradient.flatten(0, 1)
        sums = [torch.zeros_like(f, dtype=size.wide) for f in factors]
        d_d1, d_d2, d_b_d, d_u1, d_u2, d_b_u = sums
        for rows in size.chunks(gradient):
            part = gradient[rows].to(size.narrow)
            before, hidden, last = own.inner(low[:, rows])
            d_u2 += (part.t() @ _side_by_side(last)).unflatten(1, (count, -1)).transpose(0, 1)
            d_last = (part @ own.u2).unflatten(1, (count, -1)).transpose(0, 1)
            d_u1 += torch.bmm(d_last.transpose(1, 2), hidden)
            d_before = torch.ops.aten.gelu_backward(torch.bmm(d_last, own.u1), before)
            d_d2 += torch.bmm(d_before.transpose(1, 2), low[:, rows])
            d_b_d += d_before.sum(1, dtype=size.wide)
            d_low = torch.bmm(d_before, own.d2)
            for k, place in enumerate(kept):
                d_d1[k] += d_low[k].t() @ place.get(rows).to(size.narrow)
        d_b_u += gradient.sum(0, dtype=size.wide)  # the same for every adapter
        own_gradients = [s.to(f.dtype) for s, f in zip(sums, factors, strict=True)]
        return None, None, *([None] * count), *own_gradients


register_fast_form("parallel", DualLowRankAdapter, run_parallel)
