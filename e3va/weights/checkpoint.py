"""Read files of weights without executing code from them."""

import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError, brief
from ..utils.optional import require
from .eight_bits import is_packed, unpack
from .restricted_pickle import DAMAGE, forbidden_global, read_pickle

_ZIP = b"PK\x03\x04"  # the archives that torch.save writes
_LEGACY = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the start of files of torch.save before 1.6
# Pickles: of protocols 2 and later; a dict and an OrderedDict of the older ones.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(dp\d|\}q|c[\w.]+\n\w+\n")
_LONGEST_HEADER = 100_000_000  # bytes, by the definition of safetensors
_COPY_AGAIN = "it is truncated, damaged or another kind of file; copy or download it again"


def load_file(path: str | os.PathLike) -> dict:
    """Read a file of weights onto the CPU without executing code from it.

    The first bytes of the file, not its name, decide how it is read: as safetensors, by
    ``torch.load(weights_only=True)`` or by :mod:`e3va.weights.restricted_pickle`.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or needs pickled code to load.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"no weights file {path}: expected .pth, .pkl or .safetensors; check the path"
        )
    with open(path, "rb") as file:
        head = file.read(512)
    if is_safetensors(head):
        return load_safetensors(path)[0]
    if not head.startswith(_ZIP) and not _PICKLE.match(head):
        raise UserError(f"{path} cannot be read as a checkpoint: {_recognize(head)}")
    try:
        if head.startswith(_ZIP):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise UserError(f"{path} is a TorchScript program: save only its state_dict")
        if head.startswith(_ZIP) or _LEGACY in head[:24]:
            with open(path, "rb") as file:  # torch would interpret the suffix of a path
                data = torch.load(file, map_location="cpu", weights_only=True)
        else:
            data = read_pickle(path)
    except DAMAGE as error:
        name = forbidden_global(error)
        if name is not None:
            raise UserError(
                f"{path} is not a file of plain tensors: reading it needs running code from it "
                f"({name}), which e3va refuses; save only the state_dict of its model"
            ) from None
        raise UserError(
            f"{path} cannot be read as a checkpoint ({brief(error)}): {_COPY_AGAIN}"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}: expected a dict of tensors")
    return data


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that starts with ``head``, at least 9 bytes, is of safetensors."""
    # A length and JSON, with which no pickle or archive starts.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _recognize(head: bytes) -> str:
    """Return what a file without weights seems to be, and what to do."""
    text = head.lstrip().lower()
    if not head:
        return "it is empty; copy or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, perhaps a server's error message; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the file; fetch the file itself (git lfs pull)"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "it is a compressed archive; unpack it and give the weights file inside"
    return f"it starts with {head[:12]!r}: {_COPY_AGAIN}"


def load_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a ``.safetensors`` file.

    8-bit matrices, see :mod:`e3va.weights.eight_bits`, are returned in float32.

    Raises:
        UserError: the file cannot be read.
    """
    safetensors = require("safetensors", f"reading {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({brief(error)}): {_COPY_AGAIN}"
        ) from None
    return unpack(tensors, metadata, str(path)), metadata


def has_8_bit_matrices(path: str | os.PathLike) -> bool:
    """Return whether only e3va can read a file, because :mod:`e3va.weights.eight_bits` wrote it."""
    if not str(path).endswith(".safetensors"):
        return False
    safetensors = require("safetensors", f"reading {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return is_packed(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False  # whoever reads the file gets the error


def model_state(data: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint: under ``model`` or ``state_dict``, or all of them."""
    inner = (data[key] for key in ("model", "state_dict") if isinstance(data.get(key), Mapping))
    data = next(inner, data)
    state = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{name} holds no tensors: expected the state_dict of a model")
    return {key.removeprefix("module."): value for key, value in state.items()}


def check_same_tensors(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str, advice: str
) -> None:
    """Check that the file ``source`` holds the model's own tensors, with the same shapes."""
    missing, extra = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    wrong = sorted(k for k in own.keys() & found.keys() if own[k].shape != found[k].shape)
    if not (missing or extra or wrong):
        return
    name = (*wrong, *missing, *extra)[0]
    here, there = (list(t[name].shape) if name in t else "absent" for t in (own, found))
    raise UserError(
        f"{source} does not fit this model: it lacks {len(missing)} of {len(own)} tensors, "
        f"{len(extra)} are unknown, {len(wrong)} of another shape ({name}: {there} in the file, "
        f"{here} in the model); {advice}"
    )
