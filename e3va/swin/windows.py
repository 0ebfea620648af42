"""Windows: the grouping of a map's tokens for attention, and the masks of shifted windows."""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def to_windows(x: Tensor, side: int) -> Tensor:
    """Divide [B, H, W, C] into windows [B, nW, side², C] in row order; ``side`` divides H and W."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Invert :func:`to_windows` for a map of ``size`` (H, W)."""
    rows, columns = size[0] // side, size[1] // side
    x = windows.unflatten(2, (side, side)).unflatten(1, (rows, columns))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def relative_position_index(window: int) -> Tensor:
    """Return the row of the bias table for each pair of tokens of a window, [N · N]."""
    position = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    row, column = (position[:, None] - position + window - 1).unbind(2)
    return (row * (2 * window - 1) + column).flatten()


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return the mask [nW, N, N]: −100 between tokens that the cyclic shift brought together."""

    def regions(size: int) -> Tensor:
        padded = math.ceil(size / window) * window
        index = torch.arange(padded, device=device)
        return (index >= padded - window).int() + (index >= padded - shift).int()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = to_windows(region[None, :, :, None], window)[0, :, :, 0]
    differs = region[:, :, None] != region[:, None, :]
    return torch.zeros(differs.shape, device=device).masked_fill_(differs, -100.0)


@dataclass(frozen=True)
class Chunk:
    """Windows of a batch of maps that are computed together.

    Attributes:
        tokens: rows of the batch's tokens [B · H · W, ...] that the windows hold.
        gather: index into ``tokens`` for each place of the windows [count · N], int32; 0 for
            padding.
        padding: places that are padding, int64.
        scatter: place of each token, int32; the inverse of ``gather``.
        groups: (first window, last window + 1, kind) of windows with the same mask. Kind 0 needs
            none; kinds 1, 2 and 3 are the windows of a shifted map in the last column, in the last
            row, and in the corner of both, see :func:`kind_masks`.
    """

    tokens: slice | Tensor
    gather: Tensor
    padding: Tensor
    scatter: Tensor
    groups: tuple[tuple[int, int, int], ...]


@functools.lru_cache(maxsize=64)
def plan_windows(
    batch: int, height: int, width: int, window: int, shift: int, rows: int, device: torch.device
) -> tuple[Chunk, ...]:
    """Divide a batch's windows into chunks of whole rows of windows, of about ``rows`` tokens."""
    side, columns = window, math.ceil(width / window)
    token = torch.arange(batch * height * width).view(batch, height, width)
    token = F.pad(token, (0, -width % side, 0, -height % side), value=-1)
    kind = torch.zeros(batch, token.shape[1] // side, columns, dtype=torch.long)
    if shift:
        token = token.roll((-shift, -shift), dims=(1, 2))
        kind[:, -1] += 2
        kind[:, :, -1] += 1
    token = to_windows(token[..., None], side).view(-1, columns, side**2)
    kind = kind.view(-1, columns)
    count = math.ceil(len(token) / max(1, rows // (columns * side**2)))
    bounds = [len(token) * i // count for i in range(count + 1)]
    return tuple(
        _chunk(token[a:b].flatten(0, 1), kind[a:b].flatten(), device)
        for a, b in zip(bounds, bounds[1:], strict=False)
    )


def _chunk(token: Tensor, kind: Tensor, device: torch.device) -> Chunk:
    order = kind.argsort(stable=True)
    place = token[order].flatten()
    tokens = place[place >= 0].sort().values
    gather = torch.searchsorted(tokens, place.clamp(min=int(tokens[0])))
    real = torch.where(place >= 0)[0]
    scatter = torch.empty_like(tokens)
    scatter[gather[real]] = real
    kinds, counts = kind[order].unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    first, last = int(tokens[0]), int(tokens[-1])
    side_by_side = last - first + 1 == len(tokens)
    return Chunk(
        slice(first, last + 1) if side_by_side else tokens.to(device),
        gather.to(device, torch.int32),
        torch.where(place < 0)[0].to(device),
        scatter.to(device, torch.int32),
        tuple(zip((ends - counts).tolist(), ends.tolist(), kinds.tolist(), strict=True)),
    )


@functools.lru_cache(maxsize=16)
def kind_masks(window: int, shift: int, device: torch.device) -> Tensor:
    """Return the masks [4, N, N] of the four kinds of windows, see :class:`Chunk`."""
    # A map of two by two windows has one of each kind, in this order.
    return shift_mask(2 * window, 2 * window, window, shift, device)
