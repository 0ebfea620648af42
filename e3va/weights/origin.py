"""Which pretrained weights a trunk holds: a name for people, a fingerprint for programs."""

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
_SHOWN = 16  # digits of a fingerprint that people compare
_THEN = ", "  # between roundings


@dataclass(frozen=True)
class TrunkOrigin:
    """Where a trunk's weights came from.

    Attributes:
        source: a file's name, a zoo address or ``"demo"``; ``UNKNOWN`` without one.
        fingerprint: of the weights as they were loaded, see :func:`fingerprint`; rounding them
            afterwards (:meth:`e3va.E3VABackbone.prepare`) does not change it.
        stored: how they have been rounded since: ``"fp32"`` for not at all, else ``"bf16"`` or
            ``"fp16"``, with ``"int8 "`` in front where the blocks' matrices were kept in 8 bits;
            one after another, by commas, of a training that went on with another ``memory``.
    """

    source: str
    fingerprint: str
    stored: str = "fp32"

    @property
    def short(self) -> str:
        """The fingerprint's first digits, for messages."""
        return self.fingerprint[:_SHOWN]

    def rounded(self, dtype: torch.dtype, int8: bool = False) -> "TrunkOrigin":
        """The origin of the same weights after they have been converted to ``dtype``, the blocks'
        matrices to 8 bits; what has been rounded before stays so."""
        names = {own: name for name, own in DTYPES.items()}
        now = "int8 " * int8 + names.get(dtype, "fp32")
        before = self.stored.split(_THEN)
        if now in ("fp32", before[-1]):
            return self
        return replace(self, stored=_THEN.join([*(s for s in before if s != "fp32"), now]))


def fingerprint(trunk: Mapping[str, Tensor]) -> str:
    """SHA-256 over a trunk's tensors in float32, in the order of their official names.

    Which library's file they came from, and in which type they lay there, makes no difference.
    """
    digest = hashlib.sha256()
    for name in sorted(trunk):
        value = trunk[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(value.shape)}\n".encode())
        size = value.numel() * value.element_size()
        digest.update((ctypes.c_char * size).from_address(value.data_ptr()))  # no copy, no numpy
    return digest.hexdigest()


def origin_of(trunk: SwinTrunk) -> TrunkOrigin:
    """The origin of a trunk's weights; one that nobody recorded is read off them as they are."""
    if trunk.origin is None:
        trunk.origin = TrunkOrigin(UNKNOWN, fingerprint(trunk.state_dict()))
    return trunk.origin


def round_as(trunk: SwinTrunk, stored: str) -> None:
    """Round a trunk's weights as :attr:`TrunkOrigin.stored` says others have been."""
    for step in stored.split(_THEN):
        widen(trunk)  # as saving and loading between two trainings does
        *matrices, rest = step.split()
        if matrices:
            store_in_8_bits(trunk)
        store_as(trunk, DTYPES[rest])
