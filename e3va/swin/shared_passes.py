"""One pass of a frozen trunk for several readers, such as the models of several tasks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Each thread has its own, because threads may share a trunk.
_current: ContextVar["SharedPasses | None"] = ContextVar("shared_passes", default=None)


@dataclass
class _Pass:
    images: Tensor
    taps: str | None
    mode: tuple[Any, ...]
    rest: Iterator[Any]
    stages: list[Any] = field(default_factory=list)
    readers: list[str] = field(default_factory=list)

    def fits(self, images: Tensor, taps: str | None, mode: tuple[Any, ...]) -> bool:
        """Return whether a reader gets what a pass of its own would give it."""
        same = taps in (self.taps, None) and mode == self.mode
        return same and (images is self.images or torch.equal(images, self.images))


class SharedPasses:
    """The passes of one trunk in a block of :func:`share_passes`.

    Attributes:
        reader: name of the reader that runs, which the caller sets.
    """

    def __init__(self, trunk: torch.nn.Module):
        self.trunk, self.reader = trunk, ""
        self._passes: list[_Pass] = []

    @property
    def readers(self) -> list[list[str]]:
        """The names of the readers of each pass."""
        return [own.readers for own in self._passes]

    def read(
        self,
        run: Callable[[], Iterator[Any]],
        images: Tensor,
        taps: str | None,
        mode: tuple[Any, ...],
        count: int,
    ) -> Iterator[Any]:
        """Yield the first ``count`` stages of an earlier pass that fits, or of a new one.

        Args:
            run: starts a new pass, of all stages.
            images: images [B, 3, H, W].
            taps: the taps that the reader consumes; None fits every pass.
            mode: whatever else the stages depend on.
            count: number of stages.
        """
        own = next((p for p in self._passes if p.fits(images, taps, mode)), None)
        if own is None:
            own = _Pass(images, taps, mode, run())
            self._passes.append(own)
        own.readers.append(self.reader)
        for index in range(count):
            if index == len(own.stages):
                own.stages.append(next(own.rest))
            yield own.stages[index]


@contextmanager
def share_passes(trunk: torch.nn.Module) -> Iterator[SharedPasses]:
    """Let models over one trunk read the same pass in the block, if they give it the same images.

    The stages of all passes stay in memory until the block ends.

    Args:
        trunk: a frozen :class:`e3va.SwinTrunk` that several backbones share.
    """
    passes = SharedPasses(trunk)
    token = _current.set(passes)
    try:
        yield passes
    finally:
        _current.reset(token)


def passes_of(trunk: torch.nn.Module) -> SharedPasses | None:
    """Return the passes that a trunk shares now; None outside of :func:`share_passes`."""
    passes = _current.get()
    return passes if passes is not None and passes.trunk is trunk else None
