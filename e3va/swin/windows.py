"""Windows: how tokens of a map are grouped for attention, which belong together, and in what order.

Everything here follows from sizes alone; nothing of it is learned.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def to_windows(x: Tensor, side: int) -> Tensor:
    """[B, H, W, C] with sides that ``side`` divides → [B, nW, side², C], windows in row order."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """The inverse of :func:`to_windows` for a map of ``size`` (H, W)."""
    rows, columns = size[0] // side, size[1] // side
    x = windows.unflatten(2, (side, side)).unflatten(1, (rows, columns))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, flattened to [N · N], int64."""
    position = torch.stack(
        torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    ).flatten(1)
    offset = position[:, :, None] - position[:, None, :] + window - 1
    return (offset[0] * (2 * window - 1) + offset[1]).flatten()


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """The mask [nW, N, N] of shifted windows: 0 between tokens that are neighbours in the image,
    −100 (Swin's own value) between those that the cyclic shift brought together."""

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
    """Some windows of a batch of maps, to be worked on together.

    Attributes:
        tokens: which rows of the batch's tokens [B · H · W, …] the windows hold.
        gather: for each place of the windows [count · N] the token there, as its number in
            ``tokens``, int32; 0 where there is padding.
        padding: the places where there is padding, int64.
        scatter: for each of the tokens its place, int32; the inverse of ``gather``.
        groups: (first window, last + 1, kind): windows of one kind stand side by side. Kind 0
            needs no mask; 1, 2 and 3 are the windows of shifted maps in the last column, the last
            row, and the corner of both, see :func:`kind_masks`.
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
    """Divide the windows of a batch of maps into chunks of about ``rows`` tokens at most.

    A chunk is a run of whole rows of windows, so that its tokens lie side by side in memory (but
    for those that the cyclic shift brings from one end of the map to the other).
    """
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
    """The four masks [4, N, N] by the kind of a window, see :class:`Chunk`."""
    # A map of two by two windows has one of each kind, in this order.
    return shift_mask(2 * window, 2 * window, window, shift, device)
