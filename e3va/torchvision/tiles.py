"""Large pictures in tiles: the cut, and the merging of the tiles' results."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import pycocotools.mask
import torch
from torch import Tensor
from torchvision.ops import box_iou

from ..utils.errors import UserError
from .masks import RunLengthMasks, Size

SMALLEST = 32  # pixels; one token of the trunk's last stage
SAME = 0.5  # intersection over union in the area that both tiles see
Found = dict[str, "Tensor | RunLengthMasks"]


class Tile(NamedTuple):
    """A rectangle of a picture; ``bottom`` and ``right`` do not belong to it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def box(self) -> Tensor:
        """The rectangle as x1 y1 x2 y2, [4] float32."""
        return torch.tensor([self.left, self.top, self.right, self.bottom], dtype=torch.float32)

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """The place of the tile's pixels in an image [3, H, W]."""
        return slice(None), slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Tiling:
    """How large pictures are cut.

    Args:
        size: height and width of a tile in pixels, at least 32.
        overlap: least number of pixels that neighbouring tiles share; None for an eighth of
            ``size``.

    Raises:
        UserError: the size is below 32, or the overlap is not from 0 to ``size`` - 1.
    """

    size: int = 1024
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.size < SMALLEST:
            raise UserError(f"--tile {self.size}: expected at least {SMALLEST} pixels")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.size // 8)
        if not 0 <= self.overlap < self.size:
            raise UserError(
                f"--overlap {self.overlap} with --tile {self.size}: expected an overlap from 0 to "
                f"{self.size - 1} pixels"
            )

    def starts(self, length: int) -> list[int]:
        """Return where the tiles begin along a side; they are spread evenly."""
        steps = -(-max(0, length - self.size) // (self.size - self.overlap))
        return [
            round(step * (length - self.size) / steps) if steps else 0 for step in range(steps + 1)
        ]

    def is_larger(self, size: Size) -> bool:
        """Return whether a picture is larger than a tile, so that it is cut."""
        return max(size) > self.size


class Grid:
    """The tiles of one picture, all of one size.

    Args:
        tiling: how the picture is cut.
        size: height and width of the picture in pixels.
    """

    def __init__(self, tiling: Tiling, size: Size):
        self.size, self.near = tuple(size), max(1, tiling.size // 64)
        self.rows, self.columns = (tiling.starts(side) for side in size)
        self.height, self.width = (min(side, tiling.size) for side in size)

    @cached_property
    def tiles(self) -> list[Tile]:
        """The tiles, row by row."""
        return [
            Tile(top, left, top + self.height, left + self.width)
            for top, left in product(self.rows, self.columns)
        ]

    def neighbours(self) -> Iterator[tuple[int, int]]:
        """Yield the places in :attr:`tiles` of all pairs of tiles that share pixels."""
        across = len(self.columns)
        for (row, other_row), (column, other_column) in product(
            _sharing(self.rows, self.height), _sharing(self.columns, self.width)
        ):
            first, second = row * across + column, other_row * across + other_column
            if first < second:
                yield first, second

    def own_parts(self) -> Iterator[Tile]:
        """Yield for each tile the pixels whose nearest tile centre is that of the tile."""
        rows = _middles(self.rows, self.height, self.size[0])
        columns = _middles(self.columns, self.width, self.size[1])
        for (top, bottom), (left, right) in product(rows, columns):
            yield Tile(top, left, bottom, right)

    def inside(self, tile: Tile, boxes: Tensor) -> Tensor:
        """Return which boxes [N, 4] lie in a tile and touch none of its inner borders, [N].

        An inner border is one that is not the picture's. A box that ends a few pixels before it
        touches it too, because predicted boxes are not exact.
        """
        height, width = self.size
        inner = torch.tensor(
            [tile.left > 0, tile.top > 0, tile.right < width, tile.bottom < height]
        )
        # Boxes may reach over the picture's border.
        margin = torch.where(inner, float(self.near), -torch.inf)
        low = boxes[:, :2] > tile.box[:2] + margin[:2]
        return (low & (boxes[:, 2:] < tile.box[2:] - margin[2:])).all(1)


def _sharing(starts: list[int], length: int) -> list[tuple[int, int]]:
    """Return the pairs of places whose tiles share pixels along a side, each in both orders."""
    pairs = []
    for one, start in enumerate(starts):
        for other in range(one, len(starts)):
            if starts[other] >= start + length:
                break
            pairs += [(one, other), (other, one)][: 1 + (other > one)]
    return pairs


def _middles(starts: list[int], length: int, end: int) -> list[tuple[int, int]]:
    between = [(one + length + two) // 2 for one, two in zip(starts, starts[1:], strict=False)]
    return list(zip([0, *between], [*between, end], strict=True))


class LabelMerger:
    """The label map of a picture, [H, W] uint8; each pixel is from the tile of nearest centre."""

    def __init__(self, grid: Grid):
        self.parts = list(grid.own_parts())
        self.tiles, self.labels = grid.tiles, torch.zeros(grid.size, dtype=torch.uint8)

    def add(self, index: int, found: Found) -> None:
        """Add the label map of a tile, given by its place among the tiles."""
        tile, part = self.tiles[index], self.parts[index]
        rows = slice(part.top - tile.top, part.bottom - tile.top)
        columns = slice(part.left - tile.left, part.right - tile.left)
        self.labels[part.place[1:]] = found["labels"][rows, columns].to(torch.uint8)

    def finish(self) -> Found:
        """Return ``labels``."""
        return {"labels": self.labels}


class ObjectMerger:
    """The objects of a picture, from those of its tiles.

    Two tiles see their shared area both, and an inner border, one that is not the picture's, may
    cut an object.

    1. An object that touches an inner border of its tile is dropped if it lies inside another tile
       and touches none of that tile's inner borders: the other tile sees all of it.
    2. Two objects of neighbouring tiles are the same if they have one class and agree in the
       shared area: there the intersection over union of their masks, or of their boxes where there
       are no masks, is at least 0.5. Each object has at most one partner in another tile; the best
       pairs are taken first.
    3. Of objects that are the same, the one with the best score stays among those that touch no
       inner border. If all touch one, the object is larger than the overlap: box and mask are
       joined, and the best score stays.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        self.found: list[Found] = [{} for _ in grid.tiles]

    def add(self, index: int, found: Found) -> None:
        """Add the objects of a tile, given by its place among the tiles."""
        tile = self.grid.tiles[index]
        moved = dict(found, boxes=found["boxes"] + tile.box[:2].repeat(2))
        if "masks" in found:
            moved["masks"] = found["masks"].place((tile.top, tile.left), self.grid.size)
        self.found[index] = moved

    def finish(self) -> Found:
        """Return boxes [N, 4], labels [N], scores [N] and maybe masks, best scores first."""
        self._drop()
        counts = [len(own["scores"]) for own in self.found]
        first = torch.tensor([0, *counts]).cumsum(0).tolist()
        parts = {name: [own[name] for own in self.found] for name in self.found[0]}
        masks = parts.pop("masks", None)
        joined = {name: torch.cat(values) for name, values in parts.items()}
        if masks is not None:
            records = [record for own in masks for record in own.records]
            joined["masks"] = RunLengthMasks(records, self.grid.size)
        groups = _Groups(sum(counts))
        for one, two in self.grid.neighbours():
            for index, other in self._same(self.found[one], self.found[two], one, two):
                groups.join(first[one] + index, first[two] + other)
        return self._choose(joined, groups, counts)

    def _drop(self) -> None:
        tiles = self.grid.tiles
        kept = [self.grid.inside(t, f["boxes"]) for t, f in zip(tiles, self.found, strict=True)]
        cut = [~own for own in kept]
        dropped = [torch.zeros_like(own) for own in kept]
        for one, two in self.grid.neighbours():
            for own, other in ((one, two), (two, one)):
                seen = self.grid.inside(tiles[other], self.found[own]["boxes"])
                dropped[own] |= cut[own] & seen
        for found, gone in zip(self.found, dropped, strict=True):
            found.update({name: value[~gone] for name, value in found.items()})

    def _same(self, found: Found, others: Found, one: int, two: int) -> list[tuple[int, int]]:
        """Return the places of objects of two tiles that are the same."""
        a, b = self.grid.tiles[one], self.grid.tiles[two]
        shared = Tile(*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:]))
        low, high = shared.box.split(2)
        boxes = [
            torch.cat([own[:, :2].maximum(low), own[:, 2:].minimum(high)], 1)
            for own in (found["boxes"], others["boxes"])
        ]
        boxes = [torch.cat([own[:, :2], own[:, 2:].maximum(own[:, :2])], 1) for own in boxes]
        agreement = box_iou(*boxes).nan_to_num_(0)
        agreement[found["labels"][:, None] != others["labels"]] = 0
        if "masks" in found:
            agreement = _mask_iou(found["masks"], others["masks"], agreement, shared)
        pairs, taken = [], (set(), set())
        order = agreement.flatten().argsort(descending=True, stable=True)
        for index, other in (divmod(int(n), len(others["labels"])) for n in order):
            if agreement[index, other] < SAME:
                break
            if index not in taken[0] and other not in taken[1]:
                taken[0].add(index)
                taken[1].add(other)
                pairs.append((index, other))
        return pairs

    def _choose(self, found: Found, groups: "_Groups", counts: list[int]) -> Found:
        tiles = [tile for tile, count in zip(self.grid.tiles, counts, strict=True) if count]
        split = found["boxes"].split([count for count in counts if count]) if tiles else []
        whole = [self.grid.inside(tile, own) for tile, own in zip(tiles, split, strict=True)]
        whole = torch.cat(whole) if whole else torch.zeros(0, dtype=torch.bool)
        scores, kept = found["scores"], []
        for members in groups:
            best = max(members, key=lambda n: (bool(whole[n]), float(scores[n])))
            kept.append(best)
            if len(members) > 1 and not whole[best]:
                own = found["boxes"][members]
                found["boxes"][best] = torch.cat([own[:, :2].amin(0), own[:, 2:].amax(0)])
                if "masks" in found:
                    records = found["masks"].records
                    records[best] = pycocotools.mask.merge([records[n] for n in members])
        chosen = torch.tensor(kept, dtype=torch.int64)
        chosen = chosen[scores[chosen].argsort(descending=True, stable=True)]
        return {name: value[chosen] for name, value in found.items()}


def _mask_iou(one: RunLengthMasks, two: RunLengthMasks, boxes: Tensor, shared: Tile) -> Tensor:
    """Return the IoU of masks in the shared area where that of the boxes is above 0, [N, M]."""
    result = torch.zeros_like(boxes)
    x1, y1, x2, y2 = shared.box.tolist()
    (area,) = pycocotools.mask.frPyObjects([[x1, y1, x2, y1, x2, y2, x1, y2]], *one.size)
    places = [torch.where((boxes > 0).any(dim))[0] for dim in (1, 0)]
    clipped = [
        [pycocotools.mask.merge([record, area], intersect=True) for record in own[chosen].records]
        for own, chosen in zip((one, two), places, strict=True)
    ]
    if all(clipped):
        ratios = pycocotools.mask.iou(*clipped, [False] * len(clipped[1]))
        result[places[0][:, None], places[1]] = torch.from_numpy(ratios).to(result)
    return result


class _Groups:
    """Groups of numbers from 0 to ``count`` - 1 that were joined, directly or through others."""

    def __init__(self, count: int):
        self.parents = list(range(count))

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = number = self.parents[self.parents[number]]
        return number

    def join(self, one: int, other: int) -> None:
        """Put two numbers into one group."""
        one, other = sorted((self._root(one), self._root(other)))
        self.parents[other] = one

    def __iter__(self) -> Iterator[list[int]]:
        groups: dict[int, list[int]] = {}
        for number in range(len(self.parents)):
            groups.setdefault(self._root(number), []).append(number)
        return iter(groups.values())
