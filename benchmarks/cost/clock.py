"""The part of a model in which a forward or backward pass is."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .models import Subject


def now(device: torch.device) -> float:
    """Return the time in seconds, after all work of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Division:
    """A division of the gain of a reading (seconds, FLOPs) among parts.

    The gain within an inner part does not count for the part around it.

    Attributes:
        spent: gain by part.
    """

    def __init__(self, parts: list[str], read: Callable[[], float]):
        self.read = read
        self.spent: dict[str, float] = dict.fromkeys(parts, 0)
        self._running: list[str] = []
        self._last = read()

    def enter(self, part: str) -> None:
        """Count the gain for this part from now on."""
        self._settle()
        self._running.append(part)

    def leave(self) -> None:
        """Count the gain for the part around this one again."""
        self._settle()
        self._running.pop()

    def _settle(self) -> None:
        reading = self.read()
        if self._running:
            self.spent[self._running[-1]] += reading - self._last
        self._last = reading


@contextmanager
def divided(subject: Subject, read: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Divide the gain of ``read`` in the forward passes inside the block among a model's parts.

    A detector's work outside backbone and neck counts for its heads, a backbone's work outside its
    trunk for the highway.
    """
    division = Division(list(subject.parts), read)
    whole = "highway" if "highway" in subject.parts else "trunk"
    with ExitStack() as stack:
        if subject.pyramid is not None:
            stack.enter_context(_around(subject.model, "heads", division))
            stack.enter_context(_around(subject.pyramid, "neck", division))
        stack.enter_context(_around(subject.bottom_up, whole, division))
        if hasattr(subject.bottom_up, "trunk"):
            stack.enter_context(_around_stages(subject.bottom_up.trunk, division))
        yield division.spent


@contextmanager
def _around(module: nn.Module, part: str, division: Division) -> Iterator[None]:
    before = module.register_forward_pre_hook(lambda *_: division.enter(part))
    after = module.register_forward_hook(lambda *_: division.leave(), always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _around_stages(trunk: nn.Module, division: Division) -> Iterator[None]:
    """Count for the trunk only while its consumer waits for the next stage."""

    def stages(*args: Any, **settings: Any) -> Iterator[Any]:
        running = type(trunk).stages(trunk, *args, **settings)
        while True:
            division.enter("trunk")
            try:
                stage = next(running, None)
            finally:
                division.leave()
            if stage is None:
                return
            yield stage
            del stage  # its consumer decides how long it lives

    trunk.stages = stages
    try:
        yield
    finally:
        del trunk.stages


class Arrivals:
    """The times at which the first gradients arrive at the outputs of neck and backbone.

    Autograd visits a graph in the reverse order of its creation, so the heads' backward pass is
    over when the first gradient reaches the neck's last step, and so on.
    """

    def __init__(self, subject: Subject):
        self.subject = subject
        self.moments: dict[str, float] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Put hooks on the outputs of the forward passes inside the block."""
        subject = self.subject
        if subject.pyramid is None:
            yield
            return
        with self._watch(subject.pyramid, "neck"), self._watch(subject.bottom_up, "backbone"):
            yield

    @contextmanager
    def _watch(self, module: nn.Module, name: str) -> Iterator[None]:
        def arrived(_: Tensor) -> None:
            if name not in self.moments:
                self.moments[name] = now(self.subject.device)

        def hook(_: nn.Module, __: Any, outputs: dict[str, Tensor]) -> None:
            for output in outputs.values():
                output.register_hook(arrived)

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def divide(self, began: float, ended: float) -> dict[str, float]:
        """Return the seconds of the backward pass by part."""
        if not self.moments:
            return {"backbone": ended - began}
        neck, backbone = self.moments["neck"], self.moments["backbone"]
        return {"heads": neck - began, "neck": backbone - neck, "backbone": ended - backbone}
