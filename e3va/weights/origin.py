"""The origin of a trunk's pretrained weights: a name for people, a fingerprint for programs."""

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..swin.precision import DTYPES
from ..swin.storage import store_as, store_in_8_bits, widen
from ..swin.trunk import SwinTrunk

UNKNOWN = "unknown"
_SHOWN = 16  # digits of a fingerprint in messages
_THEN = ", "  # separates successive roundings


@dataclass(frozen=True)
class TrunkOrigin:
    """Origin of a trunk's weights.

    Attributes:
        source: name of the file, address in the zoo or on the hub, ``"demo"`` or ``UNKNOWN``.
        fingerprint: fingerprint of the weights when they were loaded; rounding does not change it.
        stored: rounding of the weights since then: ``"fp32"`` (none), ``"bf16"`` or ``"fp16"``,
            after ``"int8 "`` if the blocks' matrices were rounded to 8 bits. A training that was
            resumed with another ``memory`` has several, separated by commas.
    """

    source: str
    fingerprint: str
    stored: str = "fp32"

    @property
    def short(self) -> str:
        """First digits of the fingerprint, for messages."""
        return self.fingerprint[:_SHOWN]

    def rounded(self, dtype: torch.dtype, int8: bool = False) -> "TrunkOrigin":
        """Return the origin after rounding to ``dtype``, the blocks' matrices to 8 bits if int8."""
        names = {own: name for name, own in DTYPES.items()}
        now = "int8 " * int8 + names.get(dtype, "fp32")
        before = self.stored.split(_THEN)
        if now in ("fp32", before[-1]):
            return self
        return replace(self, stored=_THEN.join([*(s for s in before if s != "fp32"), now]))


def fingerprint(trunk: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a trunk's tensors in float32, in the order of their official names.

    It depends neither on the key layout of the file nor on a type that float32 contains.
    """
    digest = hashlib.sha256()
    for name in sorted(trunk):
        value = trunk[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(value.shape)}\n".encode())
        size = value.numel() * value.element_size()
        digest.update((ctypes.c_char * size).from_address(value.data_ptr()))  # no copy, no numpy
    return digest.hexdigest()


def origin_of(trunk: SwinTrunk) -> TrunkOrigin:
    """Return the origin of a trunk's weights; compute a fingerprint if no origin is recorded."""
    if trunk.origin is None:
        trunk.origin = TrunkOrigin(UNKNOWN, fingerprint(trunk.state_dict()))
    return trunk.origin


def round_as(trunk: SwinTrunk, stored: str) -> None:
    """Round a trunk's weights; ``stored`` is as in :attr:`TrunkOrigin.stored`."""
    for step in stored.split(_THEN):
        widen(trunk)  # saving and loading between two trainings does the same
        *matrices, rest = step.split()
        if matrices:
            store_in_8_bits(trunk)
        store_as(trunk, DTYPES[rest])
