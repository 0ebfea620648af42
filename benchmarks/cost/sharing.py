"""Sharing of equal frozen weights between processes."""

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

LEAST = 2**18  # bytes of a tensor that is shared


def share_frozen(model: nn.Module, folder: Path) -> None:
    """Map the frozen parameters of a model on the CPU from files named by their contents.

    Seven models of Swin-L side by side would otherwise need 5 GB more.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or parameter.nbytes < LEAST or not parameter.is_contiguous():
            continue
        raw = parameter.detach().view(torch.uint8).numpy()
        path = folder / hashlib.sha256(raw).hexdigest()
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            raw.tofile(temporary)
            os.replace(temporary, path)
        mapped = torch.from_file(
            str(path), shared=True, size=parameter.numel(), dtype=parameter.dtype
        )
        parameter.data = mapped.view_as(parameter)
