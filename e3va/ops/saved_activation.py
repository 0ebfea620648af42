"""Storage of normed maps between the forward and the backward pass.

A normed map has mean 0 and standard deviation 1 in every token, so few bits represent it well.
"""

import math

import torch
from torch import Tensor

FORMS = ("half", "int8")
_GROUP = 64  # channels with a common 8-bit scale, so that a large channel affects few others
_LEVELS = 127


class SavedActivation:
    """A map [T, C] of type ``dtype`` that is written and read by rows.

    The form ``"half"`` is bfloat16 (float64 stays float64); ``"int8"`` is 8 bits with a bfloat16
    scale for each 64 channels. ``tensors`` are those of an earlier :class:`SavedActivation`.
    """

    def __init__(self, form: str, tensors: list[Tensor], dtype: torch.dtype):
        self.form, self.tensors, self.dtype = form, tensors, dtype

    @classmethod
    def empty(cls, form: str, like: Tensor, dtype: torch.dtype) -> "SavedActivation":
        """Allocate a map of type ``dtype`` with the shape [T, C] and the device of ``like``."""
        new = like.new_empty
        if form == "int8":
            groups = like.shape[1] // math.gcd(like.shape[1], _GROUP)
            scale = new(len(like), groups, 1, dtype=torch.bfloat16)
            return cls(form, [new(like.shape, dtype=torch.int8), scale], dtype)
        # float64 is for gradient checks, which rounding would fail.
        narrow = dtype if dtype is torch.float64 else torch.bfloat16
        return cls(form, [new(like.shape, dtype=narrow)], dtype)

    def put(self, rows: slice, values: Tensor) -> None:
        """Store ``values`` [rows, C]."""
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
        """Return the values [rows, C] in the type of the map."""
        values = self.tensors[0][rows].to(self.dtype)
        if self.form != "int8":
            return values
        scale = self.tensors[1][rows].to(self.dtype)
        return values.unflatten(1, (scale.shape[1], -1)).mul_(scale).flatten(1)
