"""The form of a trunk that :func:`torch.export.export` can follow at every image size.

The plain modules divide padded maps by views, and the exporter would have to prove for every image
size that the parts fit. Here windows and corners are gathered, by indices that are computed from
the size.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modules import PATCH, SwinBlock, unchanged
from .storage import matrices
from .trunk import TAPPED, StageOutput, SwinTrunk

LARGEST = 2**15  # pixels of an image's side in an exported program


def fresh(size: int) -> int:
    """Return a size as a symbol of its own, so that what is computed from it stays simple."""
    symbol = torch.scalar_tensor(size, dtype=torch.int64).item()
    torch._check(symbol >= 1)
    torch._check(symbol <= LARGEST)
    return symbol


def place_in(x: Tensor, dim: int, places: Tensor) -> Tensor:
    """Select ``places`` of a dimension; the place behind its last one is zero."""
    pads = [0, 0] * (x.dim() - dim)
    pads[-1] = 1
    return F.pad(x, pads).index_select(dim, places)


def pad_to(images: Tensor, size: Sequence[int]) -> Tensor:
    """Pad images [B, C, H, W] with zeros on the right and below to [B, C, *size]."""
    for dim, side in ((2, size[0]), (3, size[1])):
        places = torch.arange(side).clamp(max=images.shape[dim])
        images = place_in(images, dim, places)
    return images


class Windows:
    """The windows of maps [H, W] with ``side`` tokens on each side, moved by ``shift``.

    Attributes:
        gather: token of each place of the windows [nW · side²]; H · W for padding.
        scatter: place of each token [H · W].
        mask: what is added to the attention's logits, [nW, side², side²]; None without a shift.
    """

    def __init__(self, counts: Sequence[int], size: Sequence[int], side: int, shift: int):
        sources, targets, regions = [], [], []
        for length, count in zip(size, counts, strict=True):
            padded = count * side
            place = torch.arange(padded)
            # % by a symbol cannot be exported to ONNX.
            moved = torch.cat([place[shift:], place[:shift]]) if shift else place
            sources.append(moved.reshape(count, side))
            back = torch.arange(length) - shift
            targets.append(torch.where(back < 0, back + padded, back) if shift else back)
            if shift:
                last = (place >= padded - side).long() + (place >= padded - shift)
                regions.append(last.reshape(count, side))
        rows, columns = _grid(sources)
        is_token = (rows < size[0]) & (columns < size[1])
        tokens = torch.where(is_token, rows * size[1] + columns, size[0] * size[1])
        self.gather = tokens.reshape(-1)
        rows, columns = targets[0][:, None], targets[1]
        window = rows // side * counts[1] + columns // side
        self.scatter = (window * side**2 + rows % side * side + columns % side).reshape(-1)
        self.mask = None
        if shift:
            rows, columns = _grid(regions)
            region = (rows * 3 + columns).reshape(-1, side**2)
            self.mask = (region[:, :, None] != region[:, None, :]) * -100.0


def _grid(axes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows and columns [windows, side] so that they broadcast in the order of windows."""
    return axes[0][:, None, :, None], axes[1][:, None]


def _window_attention(
    block: SwinBlock, x: Tensor, windows: Windows, change: Callable = unchanged
) -> Tensor:
    """Compute :meth:`SwinBlock.window_attention`."""
    batch, height, width, channels = x.shape
    own = place_in(x.flatten(1, 2), 1, windows.gather)
    own = own.reshape(batch, -1, block.window**2, channels)
    out = block.attn(own, windows.mask, change).flatten(1, 2)
    return out.index_select(1, windows.scatter).reshape(batch, height, width, channels)


def _corner_places(size: Sequence[int], half: Sequence[int]) -> Tensor:
    """Return the tokens of each 2×2 tokens of a map, in the order of ``PatchMerging.corners``."""
    inside = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    rows = (2 * torch.arange(half[0]))[:, None, None] + inside[:, 0]
    columns = (2 * torch.arange(half[1]))[:, None] + inside[:, 1]
    is_token = (rows < size[0]) & (columns < size[1])
    tokens = torch.where(is_token, rows * size[1] + columns, size[0] * size[1])
    return tokens.reshape(-1)


def _corners(places: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Compute :meth:`PatchMerging.corners`."""
    return place_in(x, 1, places).reshape(x.shape[0], -1, 4 * x.shape[2])


def _stages(
    trunk: SwinTrunk,
    exact: bool,
    images: Tensor,
    taps: str | None = "block",
    count: int | None = None,
    changes: Sequence[Sequence[Callable]] | None = None,
) -> Iterator[StageOutput]:
    """Compute :meth:`SwinTrunk.stages`."""

    def divide(size: Sequence[int], by: int) -> list[int]:
        return [side // by if exact else fresh((side + by - 1) // by) for side in size]

    size = divide(images.shape[2:], PATCH)
    images = pad_to(images, [PATCH * side for side in size])
    x = trunk.add_position(trunk.patch_embed(images))
    msa, mlp = TAPPED[taps]
    for index, layer in enumerate(trunk.layers[:count]):
        counts = [fresh((side + layer.window - 1) // layer.window) for side in size]
        windows = {
            shift: Windows(counts, size, layer.window, shift)
            for shift in {block.shift for block in layer.blocks}
        }
        kept: dict[str, list[Tensor]] = {name: [] for name in (msa, mlp) if name}
        own = changes[index] if changes else [unchanged] * len(layer.blocks)
        for block, change in zip(layer.blocks, own, strict=True):
            values = block(x, windows[block.shift], change)
            x = values["after_mlp"]
            for name, tensors in kept.items():
                tensors.append(values[name].flatten(1, 2))
        out, merged, half = x.flatten(1, 2), None, size
        if layer.downsample is not None:
            half = divide(size, 2)
            layer.downsample.corners = partial(_corners, _corner_places(size, half))
            merged = layer.downsample(out, *size)
            x = merged.unflatten(1, half)
        yield StageOutput(index, kept.get(msa, []), kept.get(mlp, []), out, merged, *size)
        size = half


def make_exportable(trunk: SwinTrunk, exact: bool = False) -> None:
    """Change a trunk so that it computes the same in a form for the exporter, and without autograd.

    Args:
        trunk: the trunk, which changes for good.
        exact: whether all images have sides that are multiples of the last stage's stride.
    """
    trunk.stages = partial(_stages, trunk, exact)
    for block in (block for layer in trunk.layers for block in layer.blocks):
        block.window_attention = partial(_window_attention, block)


class HalfLinear(nn.Module):
    """A linear layer with its weight stored in float16, which computes in its input's type."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().half())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)


def store_in_half(trunk: SwinTrunk) -> None:
    """Round the matrices of the blocks, which hold nearly all of a Swin's weights, to float16."""
    for owner, name, linear in matrices(trunk):
        setattr(owner, name, HalfLinear(linear))
