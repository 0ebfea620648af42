"""A restricted unpickler for files of arrays and tensors, as in Detectron2's model zoo.

It calls no function that a pickle names: a few names become inert records, the others are refused.
The tensors are built from the records afterwards, with their sizes checked.
"""

import functools
import io
import math
import os
import pickle
import pickletools
import re
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

# Exceptions that a damaged file can raise here or in torch.load.
DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, MemoryError, RuntimeError),
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
    struct.error,
)
# Types by their names in numpy, without the byte order.
_DTYPES = {
    **{"f2": torch.float16, "f4": torch.float32, "f8": torch.float64},
    **{"i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64},
    **{"u1": torch.uint8, "b1": torch.bool},
}
_NATIVE = {"little": "<", "big": ">"}[sys.byteorder]


def forbidden_global(error: BaseException) -> str | None:
    """Return the name that this module or ``torch.load(weights_only=True)`` refused, or None."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else None


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a plain pickle; numpy arrays and tensors in it become tensors on the CPU.

    It raises one of :data:`DAMAGE` if the file is damaged or names a forbidden function or class.
    """
    with open(path, "rb") as file:
        _check_memo(file)
        file.seek(0)
        return _build(_Unpickler(file, encoding="latin1").load(), {})


def _check_memo(file: BinaryIO) -> None:
    """Refuse memo indices beyond the number of operations: the unpickler allocates up to them."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name.endswith("PUT") and argument > count:
            raise pickle.UnpicklingError(f"memo entry {argument} after {count} operations")


class _Record:
    """A call that a pickle describes: the name of the function, its arguments and the state."""

    def __init__(self, name: str, args: tuple):
        self.name, self.args, self.state = name, args, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        full = f"{module}.{name}"
        # A new function each time, because a pickle can set attributes on the result.
        if full == "collections.OrderedDict":
            return lambda *args: OrderedDict(*args)
        if full in _MAKERS:
            return lambda *args: _Record(full, args)
        raise pickle.UnpicklingError(f"forbidden GLOBAL {full}")


def _build(value: Any, built: dict[int, Any]) -> Any:
    """Convert records, and what contains them, to tensors and plain values, each object once."""
    if isinstance(value, dict | list | tuple | _Record) and id(value) not in built:
        build = functools.partial(_build, built=built)
        if isinstance(value, dict):
            made = {build(key): build(item) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            made = type(value)(map(build, value))
        else:
            made = _MAKERS[value.name](build(value.state), *build(value.args))
        built[id(value)] = made
    return built.get(id(value), value)


def _encode(state: None, text: str, encoding: str) -> bytes:
    """Build bytes as Python 3 writes them for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _dtype(state: tuple | None, kind: str, *flags: Any) -> tuple[str, str]:
    """Return a numpy.dtype as its kind with its size, and its byte order."""
    return kind, state[1] if state else "|"


def _array(state: tuple, *empty: Any) -> Tensor:
    shape, dtype, fortran, data = state[-4:]
    return _tensor_of_bytes(data, dtype, shape, fortran)


def _array_of_buffer(state: None, data: Any, dtype: tuple, shape: tuple, order: str) -> Tensor:
    return _tensor_of_bytes(data, dtype, shape, order == "F")


def _scalar(state: None, dtype: tuple, data: Any) -> float | int | bool:
    return _tensor_of_bytes(data, dtype, (), False).item()


def _tensor_of_bytes(data: Any, dtype: tuple[str, str], shape: tuple, fortran: bool) -> Tensor:
    """Build a tensor from numpy's bytes; with ``fortran`` the first axis varies fastest."""
    kind, order = dtype
    if kind not in _DTYPES:
        raise pickle.UnpicklingError(f"an array of numpy's type {kind}, which torch lacks")
    if isinstance(data, str):  # the bytes of Python 2
        data = data.encode("latin1")
    shape = _sizes(shape)
    size = int(kind[1:])
    if len(data) != math.prod(shape) * size:
        raise pickle.UnpicklingError(f"{len(data)} bytes for an array {list(shape)} of {kind}")
    if not data:
        return torch.empty(shape, dtype=_DTYPES[kind])
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if order not in ("|", "=", _NATIVE):
        raw = raw.view(-1, size).flip(1).flatten()
    values = raw.view(_DTYPES[kind])
    if fortran:
        return values.view(shape[::-1]).permute(*range(len(shape))[::-1])
    return values.view(shape)


def _sizes(values: Any) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise pickle.UnpicklingError(f"sizes {values!r}")
    return tuple(values)


def _storage(state: None, data: bytes) -> Tensor:
    """Build a tensor of all numbers of a storage that ``torch.save`` wrote into the pickle."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about a future change of torch
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


def _tensor(
    state: None, storage: Tensor, offset: int, size: tuple, stride: tuple, *flags: Any
) -> Tensor:
    # as_strided checks that the storage is large enough.
    return storage.as_strided(_sizes(size), _sizes(stride), *_sizes((offset,)))


# The builders by name; their arguments are the state and those of the call.
_MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda state: b"",  # as written for Python 2
    "builtins.bytes": lambda state: b"",
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda state, *args: None,  # only an argument of the calls below
    "torch._utils._rebuild_parameter": lambda state, data, *flags: data,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _MAKERS[f"{_package}.multiarray._reconstruct"] = _array
    _MAKERS[f"{_package}.multiarray.scalar"] = _scalar
    _MAKERS[f"{_package}.numeric._frombuffer"] = _array_of_buffer
