"""Normed maps as they are kept from the forward pass for the backward pass.

A normed map has mean 0 and deviation 1 in every token, so few bits say most of it; and it is read
only where gradients are formed, never by the forward pass, whose results do not depend on this.
"""

import math

import torch
from torch import Tensor

FORMS = ("half", "int8")
_GROUP = 64  # channels that share a scale in 8 bits, so that one wide channel spoils few
_LEVELS = 127


class SavedActivation:
    """A map [T, C] that is put in and taken out by rows.

    Args:
        form: ``"half"``, bfloat16 (float64 stays float64); or ``"int8"``, 8 bits with a bfloat16 scale for each 64
            channels.
        tensors: what :attr:`tensors` gave.
        dtype: of the map.
    """

    def __init__(self, form: str, tensors: list[Tensor], dtype: torch.dtype):
        self.form = form
        self.tensors = tensors
        self.dtype = dtype

    @classmethod
    def empty(cls, form: str, like: Tensor, dtype: torch.dtype) -> "SavedActivation":
        """For a map of type ``dtype`` with the shape [T, C] and on the device of ``like``."""
        new = like.new_empty
        if form == "int8":
            groups = like.shape[1] // math.gcd(like.shape[1], _GROUP)
            scale = new(len(like), groups, 1, dtype=torch.bfloat16)
            return cls(form, [new(like.shape, dtype=torch.int8), scale], dtype)
        # float64 is for checks of gradients, which rounding would fail.
        narrow = dtype if dtype is torch.float64 else torch.bfloat16
        return cls(form, [new(like.shape, dtype=narrow)], dtype)

    def put(self, rows: slice, values: Tensor) -> None:
        """Keep ``values`` [rows, C]."""
        if self.form != "int8":
            self.tensors[0][rows] = values
            return
        numbers, scales = self.tensors
        values = values.unflatten(1, (scales.shape[1], -1))
        scale = (values.abs().amax(dim=2, keepdim=True) / _LEVELS).to(scales.dtype)
        scales[rows] = scale.clamp_(min=torch.finfo(scales.dtype).tiny)
        rounded = (values / scales[rows].to(values.dtype)).round_().clamp_(-_LEVELS, _LEVELS)
        numbers[rows] = rounded.flatten(1).to(torch.int8)

    def get(self, rows: slice) -> Tensor:
        """The values [rows, C] in the map's own type."""
        values = self.tensors[0][rows].to(self.dtype)
        if self.form != "int8":
            return values
        scale = self.tensors[1][rows].to(self.dtype)
        return values.unflatten(1, (scale.shape[1], -1)).mul_(scale).flatten(1)
