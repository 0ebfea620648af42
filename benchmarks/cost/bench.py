"""Counts and timed steps of one method on its batch."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e3va.utils.measure import MIB, count_parameters, track_saved_bytes
from e3va.utils.seeding import seed_everything

from . import limits
from .clock import Arrivals, divided, now
from .meters import flop_counter, resident_bytes, track_peak
from .methods import METHODS
from .models import SUBJECTS, Spec
from .sharing import share_frozen

GIB = 1024 * MIB
AVERAGES = ("exp_avg", "exp_avg_sq")  # of AdamW


class Bench:
    """A method's model, its batch and its optimizer.

    The learning rate is zero: an update does its usual computation and changes nothing, so that
    every step does the same work.
    """

    def __init__(self, spec: Spec):
        self.spec = spec
        self.device = torch.device(spec.device)
        self.cuda = self.device.type == "cuda"
        if self.cuda and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        if spec.cap:
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(spec.cap * GIB / total, self.device)
        self.subject = SUBJECTS[spec.framework](spec)
        if spec.shared and self.device.type == "cpu":
            share_frozen(self.subject.model, Path(spec.shared))
        trained = [p for p in self.subject.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.05)
        # With this scale the gradients of random weights do not overflow, so no update is skipped.
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=spec.precision == "fp16", init_scale=1.0
        )

    def facts(self) -> dict[str, Any]:
        """Return the method's title and its parameters by part."""
        rows = count_parameters(self.subject.model, self.subject.parts)
        backbone = [row for row in rows if row.part in ("trunk", "highway")]
        trained = sum(row.trained for row in backbone)
        return {
            "method": self.spec.method,
            "title": METHODS[self.spec.method].title.format(rank=self.spec.rank),
            "trained": sum(row.trained for row in rows),
            "trained_in_backbone": trained,
            "share_of_backbone": trained / sum(row.total for row in backbone),
            "parameters": {row.part: {"all": row.total, "trained": row.trained} for row in rows},
        }

    def load(self, height: int, width: int, batch: int) -> None:
        """Draw a batch of another size."""
        self.subject.load(height, width, batch)

    def count(self) -> dict[str, Any]:
        """Count bytes saved for backward and FLOPs by part; equal losses show equal work."""
        subject = self.subject
        self._wake()
        with flop_counter() as counter:
            with (
                track_saved_bytes(subject.model, subject.parts) as saved,
                divided(subject, counter.get_total_flops) as forward,
            ):
                loss = self._forward()
            done = counter.get_total_flops()
            self.scaler.scale(loss).backward()
            backward = counter.get_total_flops() - done
        value = float(loss.detach())
        del loss
        self._update()
        self._rest()
        return {
            "loss": value,
            "saved_bytes": saved.by_part,
            "flops": {"forward": forward, "backward": backward},
        }

    def peak(self) -> dict[str, Any]:
        """Measure the bytes before a step, and the peak above them.

        A step must have run before, so that the optimizer has its state.
        """
        self._wake()
        with track_peak(self.device) as peak:
            self.scaler.scale(self._forward()).backward()
            self._update()
        resident = resident_bytes(self.subject.model, self.optimizer)
        self._rest()
        return {"peak_bytes": peak.bytes, "resident_bytes": resident}

    def warm_up(self) -> None:
        """Take two steps that are not timed; in the second, the optimizer has its state."""
        self._wake()
        try:
            for _ in range(2):
                self._step(divide=False)
        finally:
            self._rest()

    def round(self) -> dict[str, Any]:
        """Measure the seconds of one step, and of its parts.

        A step that is not timed comes first, because memory was released before, and its first use
        is slow. On CUDA the parts are timed in a separate step, in which the device is synchronized
        at every boundary.
        """
        self._wake()
        self._step(divide=False)
        if self.cuda:
            whole = self._step(divide=False)
            found = {**self._step(divide=True), **whole}
        else:
            found = self._step(divide=True)
        self._rest()
        return found

    def limits(self) -> dict[str, float]:
        """See :func:`cost.limits.measure`."""
        found = limits.measure(self.device, self.spec.precision)
        self._rest()
        return found

    def _step(self, divide: bool) -> dict[str, Any]:
        subject, device = self.subject, self.device
        arrivals, parts = Arrivals(subject), {}
        began = now(device)
        with contextlib.ExitStack() as stack:
            if divide:
                stack.enter_context(arrivals.watched())
                parts["forward_parts"] = stack.enter_context(divided(subject, lambda: now(device)))
            loss = self._forward()
        forward_done = now(device)
        self.scaler.scale(loss).backward()
        backward_done = now(device)
        self._update()
        ended = now(device)
        del loss
        self.optimizer.zero_grad(set_to_none=True)
        if divide:
            parts["backward_parts"] = arrivals.divide(forward_done, backward_done)
        return {
            "forward": forward_done - began,
            "backward": backward_done - forward_done,
            "update": ended - backward_done,
            "step": ended - began,
            **parts,
        }

    def _forward(self) -> Tensor:
        seed_everything(0)
        dtype = limits.DTYPES[self.spec.precision]
        with torch.autocast(self.device.type, dtype, enabled=self.spec.precision != "fp32"):
            return self.subject.loss()

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _wake(self) -> None:
        """Create the averages again that :meth:`_rest` dropped."""
        for parameter, state in self.optimizer.state.items():
            for name in AVERAGES:
                state[name] = torch.empty_like(parameter).zero_()  # the write allocates memory

    def _rest(self) -> None:
        """Release the memory of a step, which other processes need while this one waits.

        The values of the averages do not matter, because the learning rate is zero.
        """
        self.optimizer.zero_grad(set_to_none=True)
        for state in self.optimizer.state.values():
            for name in AVERAGES:
                state[name] = None
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
        elif sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
                ctypes.CDLL("libc.so.6").malloc_trim(0)
