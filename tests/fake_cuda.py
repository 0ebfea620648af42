"""A CUDA device without a card: tensors that have a shape, a type and a device, but no values.

PyTorch's FakeTensorMode computes shapes, types and devices of forward passes. An operator that gets
tensors of two devices, or that needs a value on the host, raises an error.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from e3va.backbone import find_backbone
from e3va.swin import fast_trunk, precision, windows
from e3va.swin.windows import Chunk
from e3va.weights.origin import TrunkOrigin


@contextlib.contextmanager
def fake_cuda(monkeypatch, half: torch.dtype | None) -> Iterator[None]:
    """Make new tensors fake, for a card whose fast half-precision type is ``half``."""
    monkeypatch.setattr(precision, "fast_half", lambda device: half)
    # Without them autocast would disable itself.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    mode, plan = FakeTensorMode(), fast_trunk.plan_windows.__wrapped__

    def plan_windows(*arguments) -> tuple[Chunk, ...]:
        """Plan with values, as the host does, and return what a card would hold."""
        with unset_fake_temporarily():
            chunks = plan(*arguments[:-1], torch.device("cpu"))
        return tuple(Chunk(**{k: moved(v) for k, v in vars(chunk).items()}) for chunk in chunks)

    def moved(value):
        return like(value) if isinstance(value, torch.Tensor) else value

    monkeypatch.setattr(fast_trunk, "plan_windows", plan_windows)
    masks = windows.kind_masks.__wrapped__  # a cache would keep fake tensors
    monkeypatch.setattr(fast_trunk, "kind_masks", masks)
    with mode:
        yield


def like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a fake CUDA tensor like a tensor with values."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def moved_to_fake_cuda(model: nn.Module) -> nn.Module:
    """Replace a model's tensors; call it inside :func:`fake_cuda`."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model._apply(like)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def without_fingerprint(model: nn.Module) -> nn.Module:
    """Give a model's trunk an origin, so that preparing it computes no fingerprint."""
    find_backbone(model)[1].trunk.origin = TrunkOrigin("drawn", "0" * 64)
    return model
