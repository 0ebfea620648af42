"""Plain pickles of arrays and tensors, read without running code from them.

Detectron2's model zoo keeps weights so: a dict of numpy arrays or tensors, often from Python 2.
Here no function that a pickle names is called while it is read. The few names that such files
need become inert records, from which tensors are built, with their sizes checked, when the reading
is over; any other name ends it.
"""

import io
import math
import os
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

# What a damaged file can raise in this reader or in torch's.
DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
# numpy's names of the types that torch has too, without their byte order.
_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_NATIVE = {"little": "<", "big": ">"}[sys.byteorder]


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle that names a function or class that no file of plain tensors needs.

    Attributes:
        name: of the function or class, with its module.
    """

    def __init__(self, name: str):
        super().__init__(f"it names {name}")
        self.name = name


def forbidden_global(error: BaseException) -> str | None:
    """The function or class for which this module or ``torch.load(weights_only=True)`` refused."""
    if isinstance(error, ForbiddenGlobalError):
        return error.name
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else None


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a plain pickle; numpy arrays and tensors in it are given as tensors on the CPU.

    Raises:
        ForbiddenGlobalError: the file names anything but numpy's and torch's own makers of arrays
            and tensors.
        Exception: one of :data:`DAMAGE`; the file is damaged or holds what torch cannot.
    """
    with open(path, "rb") as file:
        _check_memo(file)
        file.seek(0)
        return _Builder().build(_Unpickler(file, encoding="latin1").load())


def _check_memo(file: BinaryIO) -> None:
    """Refuse entries of the memo beyond what was read: the unpickler makes room for all below."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name.endswith("PUT") and argument > count:
            raise pickle.UnpicklingError(f"memo entry {argument} after {count} operations")


class _Record:
    """What a pickle asked to be made: the maker's name, its arguments and the state set on it."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple):
        self.name = name
        self.args = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable:
        full = f"{module}.{name}"
        # A new function each time: a pickle can set attributes on what it is given here.
        if full == "collections.OrderedDict":
            return lambda *args: OrderedDict(*args)
        if full in _MAKERS or full == "numpy.ndarray":  # the latter is but an argument
            return lambda *args: _Record(full, args)
        raise ForbiddenGlobalError(full)


class _Builder:
    """Turns what an unpickler gave into dicts, lists and tensors, each object once."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}

    def build(self, value: Any) -> Any:
        """Of a dict, list, tuple or record; other values are returned as they are."""
        if not isinstance(value, dict | list | tuple | _Record):
            # Records and containers are all that the unpickler makes beside plain values.
            return value
        if id(value) not in self._built:
            self._built[id(value)] = self._make(value)
        return self._built[id(value)]

    def _make(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.build(key): self.build(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(self.build, value))
        if value.name not in _MAKERS:
            return None
        return _MAKERS[value.name](self.build(value.args), self.build(value.state))


def _encode(args: tuple, state: None) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    text, encoding = args
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes(args: tuple, state: None) -> bytes:
    if args:
        raise pickle.UnpicklingError("a call of bytes")
    return b""


def _dtype(args: tuple, state: tuple | None) -> tuple[str, str]:
    """Of a numpy.dtype: its kind with its size, and its byte order."""
    return args[0], state[1] if state else "|"


def _array(args: tuple, state: tuple) -> Tensor:
    shape, dtype, fortran, data = state[-4:]
    return _tensor_of_bytes(data, dtype, shape, fortran)


def _array_of_buffer(args: tuple, state: None) -> Tensor:
    data, dtype, shape, order = args
    return _tensor_of_bytes(data, dtype, shape, order == "F")


def _scalar(args: tuple, state: None) -> float | int | bool:
    dtype, data = args
    return _tensor_of_bytes(data, dtype, (), False).item()


def _tensor_of_bytes(data: Any, dtype: tuple[str, str], shape: tuple, fortran: bool) -> Tensor:
    """A tensor of numpy's bytes, ``fortran`` if its first axis is the fastest."""
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


def _storage(args: tuple, state: None) -> Tensor:
    """All numbers of a tensor's memory, as ``torch.save`` wrote it into the pickle."""
    (data,) = args
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a future that does not concern the file
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


def _tensor(args: tuple, state: None) -> Tensor:
    storage, offset, size, stride = args[:4]
    # as_strided looks whether the storage is large enough.
    return storage.as_strided(_sizes(size), _sizes(stride), *_sizes((offset,)))


def _parameter(args: tuple, state: None) -> Tensor:
    return args[0]


_MAKERS: dict[str, Callable[[tuple, Any], Any]] = {
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,  # as written for Python 2
    "builtins.bytes": _no_bytes,
    "numpy.dtype": _dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _MAKERS[f"{_package}.multiarray._reconstruct"] = _array
    _MAKERS[f"{_package}.multiarray.scalar"] = _scalar
    _MAKERS[f"{_package}.numeric._frombuffer"] = _array_of_buffer
