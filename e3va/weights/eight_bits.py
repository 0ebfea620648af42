"""Files of weights with 8-bit matrices: a quarter of the bytes of float32.

A matrix NAME is stored as two tensors: ``NAME.int8`` [out, in] and ``NAME.int8_scale`` [out] in
float32. Its value is the integers times the scale of their row. Every other tensor is in float16.
No tensor has the name NAME, so that other programs do not take the integers for weights. An entry
of the metadata distinguishes the files from those of other programs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..swin.storage import quantize
from ..utils.errors import UserError

_KEY, _VALUE = "e3va_storage", "int8 matrices with a float32 scale for each row"
METADATA = {_KEY: _VALUE}
_INT8, _SCALE = ".int8", ".int8_scale"


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file with 8-bit matrices; write them with :data:`METADATA`.

    Matrices are the tensors of two dimensions whose names end in ``.weight``. A position table has
    two dimensions too, but another name, and remains in float16.

    Raises:
        UserError: a value is not finite in float16, or would not be.
    """
    packed = {}
    for name, value in state.items():
        value = value.detach().cpu()
        half = value.half().contiguous()
        if not half.isfinite().all():
            raise UserError(f"{name} holds values that are not finite in float16; train again")
        if value.dim() == 2 and name.endswith(".weight"):
            packed[name + _INT8], packed[name + _SCALE] = quantize(value)
        else:
            packed[name] = half
    return packed


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Return whether a file with this metadata has 8-bit matrices."""
    return _KEY in metadata


def unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """Return the tensors of a file with its 8-bit matrices in float32.

    The tensors of any other file are returned unchanged.

    Args:
        tensors: the file's tensors by name.
        metadata: the file's metadata, which determine whether it is such a file.
        source: name of the file in messages.

    Raises:
        UserError: the kind of storage is unknown, a matrix lacks its scales or the scales their
            matrix, one of them has a wrong type or shape, or a scale is negative or not finite.
    """
    if not is_packed(metadata):
        return dict(tensors)
    if metadata[_KEY] != _VALUE:
        raise UserError(
            f"{source} has the {_KEY} {metadata[_KEY][:80]!r}: this e3va reads {_VALUE!r}; "
            "update e3va"
        )
    state = {}
    for key, value in tensors.items():
        if key.endswith(_INT8):
            name = key.removesuffix(_INT8)
            if name in tensors:
                raise _damaged(source, f"it has both {key} and {name}")
            state[name] = _matrix(key, value, name + _SCALE, tensors.get(name + _SCALE), source)
        elif key.endswith(_SCALE):
            matrix = key.removesuffix(_SCALE) + _INT8
            if matrix not in tensors:
                raise _damaged(source, f"{key} has no tensor {matrix}")
        elif value.is_floating_point():
            state[key] = value
        else:
            raise _damaged(source, f"{key} is of {value.dtype} instead of a floating-point type")
    return state


def _matrix(key: str, values: Tensor, scale_key: str, scale: Tensor | None, source: str) -> Tensor:
    """Return a matrix in float32."""
    if values.dtype is not torch.int8 or values.dim() != 2:
        found = f"{values.dtype} and shape {list(values.shape)}"
        raise _damaged(source, f"{key} is of {found} instead of torch.int8 with two dimensions")
    if scale is None:
        raise _damaged(source, f"{key} has no tensor {scale_key}")
    expected = values.shape[:1]
    if scale.dtype is not torch.float32 or scale.shape != expected:
        found = f"{scale.dtype} and shape {list(scale.shape)}"
        right = f"torch.float32 and shape {list(expected)}"
        raise _damaged(source, f"{scale_key} is of {found} instead of {right}")
    if not (scale.isfinite() & (scale >= 0)).all():
        raise _damaged(source, f"{scale_key} holds a negative value, or one that is not finite")
    return values * scale[:, None]


def _damaged(source: str, reason: str) -> UserError:
    return UserError(f"{source}: {reason}: it was altered or is incomplete; copy it again")
