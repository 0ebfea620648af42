"""What the machine can do at most: matrix products and copies."""

import time
from collections.abc import Callable

import torch

from .clock import now

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TRIES = 5
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
COPIED = 2**28  # bytes


def measure(device: torch.device, precision: str) -> dict[str, float]:
    """``flops``: FLOP/s of a large square product in that precision; ``bytes``: bytes read and
    written by a copy, per second. The best of several tries.
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
    except RuntimeError:  # this CPU has no such product in this precision
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
