"""Read files of weights without executing code from them."""

import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError
from ..utils.optional import require
from .pickles import DAMAGE, forbidden_global, read_pickle


def load_file(path: str | os.PathLike) -> dict:
    """Read a file of weights onto the CPU without executing code from it.

    What kind of file it is, is told by its first bytes, whatever its name: ``torch.save``'s, a
    plain pickle (see :mod:`e3va.weights.pickles`), or safetensors.

    Raises:
        UserError: the file is missing, truncated, not a checkpoint, or needs pickled code to load.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"no weights file {path}: expected .pth, .pkl or .safetensors; check the path"
        )
    with open(path, "rb") as file:
        head = file.read(512)
    if _is_safetensors(head):
        return load_safetensors(path)[0]
    if not head.startswith(_ZIP) and not _PICKLE.match(head):
        raise UserError(f"{path} cannot be read as a checkpoint: {_what_else(head)}")
    try:
        if head.startswith(_ZIP):
            _refuse_programs(path)
        if head.startswith(_ZIP) or _LEGACY in head[:24]:
            with open(path, "rb") as file:  # a path's suffix would mean something to torch
                data = torch.load(file, map_location="cpu", weights_only=True)
        else:
            data = read_pickle(path)
    except DAMAGE as error:
        raise UserError(_why_unread(path, error)) from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}: expected a dict of tensors")
    return data


_ZIP = b"PK\x03\x04"  # torch.save's archives
_LEGACY = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # in front of what it wrote before 1.6
# Pickles: of protocols 2 and later; a dict and an OrderedDict of the older ones.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(dp\d|\}q|c[\w.]+\n\w+\n")
_LONGEST_HEADER = 100_000_000  # bytes, by the definition of safetensors


def _is_safetensors(head: bytes) -> bool:
    """Whether a file starts with a length and JSON; no pickle or archive starts so."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _refuse_programs(path: str | os.PathLike) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise UserError(f"{path} is a TorchScript program: save its state_dict alone")


def _what_else(head: bytes) -> str:
    """What a file is that starts with ``head`` and holds no weights, and what to do."""
    text = head.lstrip().lower()
    if not head:
        return "it is empty; copy or download it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, perhaps a server's error message; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer to the file; fetch the file itself (git lfs pull)"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "it is a compressed archive; unpack it and give the weights file inside"
    return (
        f"it starts with {head[:12]!r}, as neither torch.save's files, pickles nor safetensors "
        "do: it is truncated or another kind of file; copy or download it again"
    )


def _why_unread(path: str | os.PathLike, error: BaseException) -> str:
    name = forbidden_global(error)
    if name is not None:
        return (
            f"{path} is not a file of plain tensors: it could only be read by running code from "
            f"it ({name}), which is not done; save its state_dict alone"
        )
    return (
        f"{path} cannot be read as a checkpoint ({_brief(error)}): "
        "it is truncated, damaged or another kind of file; copy or download it again"
    )


def load_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file.

    Raises:
        UserError: the file is truncated or of another kind, or safetensors is not installed.
    """
    safetensors = require("safetensors", f"reading {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({_brief(error)}): "
            "it is truncated or another kind of file; copy or download it again"
        ) from None


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()).split(". ")[0][:120]
    # A KeyError's text is the key alone.
    return text if any(c.isalpha() for c in text) else type(error).__name__


def model_state(data: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under ``model`` or ``state_dict``, or the whole of it.

    Raises:
        UserError: there are no tensors in it.
    """
    for key in ("model", "state_dict"):
        if isinstance(data.get(key), Mapping):
            data = data[key]
            break
    state = {key: value for key, value in data.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{name} holds no tensors: expected the state_dict of a model")
    return {key.removeprefix("module."): value for key, value in state.items()}
