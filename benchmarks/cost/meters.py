"""Bytes and FLOPs of a piece of work."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Peak:
    """The most bytes of tensors that were alive at once, above those from before."""

    bytes: int = 0


@contextmanager
def track_peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak of the tensors that the block allocates.

    On CUDA the allocator reports the peak. On the CPU the profiler records every allocation and
    release of PyTorch's allocator; it does not see scratch memory of libraries such as oneDNN.
    """
    peak = Peak()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        yield peak
    events = profile.profiler.kineto_results.events()
    memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = 0
    for _, size in sorted(memory, key=lambda event: event[0]):
        alive += size  # negative: a release
        peak.bytes = max(peak.bytes, alive)


def resident_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the bytes that are there between steps, each storage once.

    Returns:
        ``weights``: parameters, buffers and other tensors that modules hold, such as weights in a
        packed form; ``optimizer``: its state. And ``gradients``: of the trained parameters, which
        are there from the backward pass to the update.
    """
    state = [v for values in optimizer.state.values() for v in values.values()]
    held = [tensor for module in model.modules() for tensor in _tensors(vars(module))]
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        "weights": _bytes([*model.parameters(), *model.buffers(), *held]),
        "optimizer": _bytes([v for v in state if isinstance(v, Tensor)]),
        "gradients": sum(p.numel() * p.element_size() for p in trained),
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _bytes(tensors: list[Tensor]) -> int:
    sizes = {}
    for tensor in tensors:
        if tensor.is_mkldnn:  # packed for oneDNN, without a storage
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _linear_flops(x: torch.Size, *others: Any, out_shape: torch.Size, **_: Any) -> int:
    """X [..., K] times a weight [N, K], plain or packed; out [..., N]."""
    return 2 * x.numel() * out_shape[-1]


def _attention_flops(query, key, value, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products [B, heads, N, D] × [B, heads, M, D]: scores and sums."""
    batch, heads, rows, depth = query
    return 2 * batch * heads * rows * key[2] * (depth + value[3])


def _attention_backward_flops(grad, query, key, value, *_: Any, **__: Any) -> int:
    """Five products: the scores again, and the gradients of scores, queries, keys and values."""
    batch, heads, rows, depth = query
    return 2 * batch * heads * rows * key[2] * (3 * depth + 2 * value[3])


def _formulas() -> dict[Any, Any]:
    """Return formulas that PyTorch's counter lacks: attention and fused layers on the CPU."""
    formulas = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            _attention_backward_flops
        ),
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        formulas[torch.ops.mkldnn._linear_pointwise] = _linear_flops
    return formulas


def flop_counter() -> FlopCounterMode:
    """Return a counter of FLOPs of products, attention and convolutions; a multiply-add is two."""
    return FlopCounterMode(display=False, custom_mapping=_formulas())
