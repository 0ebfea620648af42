"""The types in which a frozen trunk computes and stores its weights."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def fast_half(device: torch.device) -> torch.dtype | None:
    """Return the half-precision type in which a device is faster than in float32, or None.

    It is bfloat16 on CUDA from Ampere (compute capability 8.0) on and on CPUs with AVX512-BF16 or
    AMX, and float16 on Volta and Turing (7.x).
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else None
    return None


def compute_dtype(precision: str, device: torch.device, mixed: bool) -> torch.dtype:
    """Return the type in which a frozen trunk computes; ``mixed`` is for mixed precision."""
    if precision != "auto":
        return DTYPES[precision]
    return (fast_half(device) if mixed else None) or torch.float32


def storage_dtype(precision: str, device: torch.device, mixed: bool) -> torch.dtype:
    """Return the type in which a frozen trunk stores its weights."""
    computed = compute_dtype(precision, device, mixed)
    # Without a fast half type, weights in float16 are converted layer by layer.
    return torch.float16 if mixed and computed is torch.float32 else computed
