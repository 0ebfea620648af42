"""The fast form of the joint between highway and trunk, which keeps only the joined map."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..ops.normalize import EPS, norm_backward
from ..ops.products import Product
from ..ops.saved_activation import SavedActivation
from ..swin.modules import PatchMerging
from .fast_forms import TokenMap


def join(
    x: Tensor,
    h: Tensor | None,
    norm: nn.LayerNorm | None,
    merging: PatchMerging | None,
    size: TokenMap,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute ``LN(x + h)`` [B, C, H, W] and ``PM(x + h) − PM(x)`` [B, T', 2C].

    x and h are [B, T, C]; h is None for zero. The results are None without ``norm`` or ``merging``.
    """
    weights, eps = (None, None), EPS
    if norm is not None:
        weights, eps = (norm.weight.to(size.wide), norm.bias.to(size.wide)), norm.eps
    with torch.autocast(x.device.type, enabled=False):
        return _Join.apply(size, merging, eps, x, h, *weights)


class _Join(torch.autograd.Function):
    """See :func:`join`."""

    @staticmethod
    def forward(ctx, size: TokenMap, merging, eps: float, x, h, weight, bias):
        x = x.to(size.wide)
        joined = x if h is None else x + h
        shape = joined.shape[-1:]
        normed, mean, inverse_std = torch.native_layer_norm(joined, shape, None, None, eps)
        if size.keep:
            rows = normed.flatten(0, 1)
            kept = SavedActivation.empty(size.keep, rows, size.wide)
            for part in size.chunks(rows):
                kept.put(part, rows[part])
            ctx.save_for_backward(weight, mean, inverse_std, *kept.tensors)
        ctx.size, ctx.merging, ctx.has_input = size, merging, h is not None
        out = after = None
        if weight is not None:
            out = torch.empty_like(joined).view(size.batch, -1, size.height, size.width)
            out.copy_(size.as_map(torch.addcmul(bias, normed, weight).flatten(0, 1)))
        if merging is not None:
            reduction = Product(merging.reduction.weight, None, size.narrow)
            difference = _merged_norm(merging, joined, size)[0] - _merged_norm(merging, x, size)[0]
            difference = difference * merging.norm.weight.to(size.wide)
            flat = difference.flatten(0, 1).to(size.narrow)
            after = reduction(flat).to(size.wide).view(*difference.shape[:2], -1)
        return out, after

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, d_after):
        size, merging = ctx.size, ctx.merging
        weight, mean, inverse_std, *kept = ctx.saved_tensors
        kept = SavedActivation(size.keep, kept, size.wide)
        normed = kept.get(slice(None)).view(size.batch, size.height * size.width, -1)
        shape, gradient, d_weight, d_bias = normed.shape[-1:], None, None, None
        if d_out is not None and weight is not None:
            d_out = size.as_rows(d_out).view_as(normed)
            unit = torch.zeros_like(mean), torch.ones_like(inverse_std)
            wanted = [ctx.has_input, True, True]
            gradient, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
                d_out, normed, shape, *unit, weight, weight, wanted
            )
            gradient = gradient * inverse_std if ctx.has_input else None
        if d_after is not None and merging is not None:
            joined = normed / inverse_std + mean
            back = _merging_backward(merging, joined, d_after, size)
            gradient = back if gradient is None else gradient + back
        return None, None, None, None, gradient, d_weight, d_bias


def _merged_norm(merging: PatchMerging, x: Tensor, size: TokenMap) -> tuple[Tensor, Tensor, Tensor]:
    """Return the unweighted norm of patch merging [B, T', 4C], its mean and 1/std."""
    corners = merging.corners(x, size.height, size.width)
    return torch.native_layer_norm(corners, corners.shape[-1:], None, None, merging.norm.eps)


def _merging_backward(
    merging: PatchMerging, joined: Tensor, gradient: Tensor, size: TokenMap
) -> Tensor:
    """Return the gradient of ``joined`` [B, T, C], from that of PM(joined) [B, T', 2C]."""
    normed, _, inverse_std = _merged_norm(merging, joined, size)
    weight = merging.reduction.weight.t().contiguous()
    flat = Product(weight, None, size.narrow)(gradient.flatten(0, 1).to(size.narrow))
    inner = flat.to(size.wide).view_as(normed) * merging.norm.weight.to(size.wide)
    inner = norm_backward(inner, normed, inverse_std)
    # The inverse of corners().
    height, width = -(-size.height // 2), -(-size.width // 2)
    inner = inner.view(size.batch, height, width, 2, 2, -1)  # column, row within the 2×2
    inner = inner.permute(0, 1, 4, 2, 3, 5).reshape(size.batch, 2 * height, 2 * width, -1)
    return inner[:, : size.height, : size.width].flatten(1, 2)
