"""The largest rates of the machine: matrix products and copies."""

import time
from collections.abc import Callable

import torch

from .clock import now

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRIES = 5
SIDE = {"cpu": 2048, "cuda": 8192}  # sides of the square matrices
COPIED = 2**28  # bytes in a copy


def measure(device: torch.device, precision: str) -> dict[str, float]:
    """Measure ``flops`` and ``bytes`` per second, as the best of several tries.

    ``flops`` is the rate of a large square product in that precision, ``bytes`` the rate of bytes
    read and written by a copy.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    best = min(_fastest(product, device) for product in _products(a, b))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device)
    return {"flops": 2 * side**3 / best, "bytes": 2 * source.numel() / copied}


def _products(a: torch.Tensor, b: torch.Tensor) -> list[Callable[[], object]]:
    products: list[Callable[[], object]] = [lambda: torch.mm(a, b)]
    if a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b, len(a))
        linear = torch.ops.mkldnn._linear_pointwise
        products.append(lambda: linear(a, packed, None, "none", [], ""))
    return [product for product in products if _works(product)]


def _works(product: Callable[[], object]) -> bool:
    try:
        product()
    except RuntimeError:  # this CPU does not have the product in this precision
        return False
    return True


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    work()
    seconds = []
    for _ in range(TRIES):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return max(min(seconds), time.get_clock_info("perf_counter").resolution)
