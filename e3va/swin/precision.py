"""In which precision the frozen trunk computes, and in which its weights are kept."""

import torch

from ..utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", *DTYPES)


def check_precision(name: str) -> None:
    """Check a trunk's precision.

    Raises:
        UserError: it is none of ``PRECISIONS``.
    """
    if name not in PRECISIONS:
        raise UserError(f"trunk_precision {name!r}: expected one of {PRECISIONS}")


def fast_half(device: torch.device) -> torch.dtype | None:
    """The half-precision type in which ``device`` multiplies matrices faster than in float32.

    bfloat16 on CUDA from Ampere (compute capability 8.0) on and on CPUs that have instructions for
    it (AVX512-BF16 or AMX); float16 on Volta and Turing (7.x); None elsewhere: a Pascal card
    computes float16 many times slower than float32.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
    if device.type == "cpu":
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = has.get("avx512_bf16") or has.get("amx_bf16")
        return torch.bfloat16 if fast else None
    return None


def compute_dtype(precision: str, device: torch.device, mixed: bool) -> torch.dtype:
    """The type in which a frozen trunk computes.

    Args:
        precision: ``"auto"`` is float32, and under mixed precision what :func:`fast_half` says;
            the others are what they say.
        mixed: whether the step runs in mixed precision.
    """
    if precision != "auto":
        return DTYPES[precision]
    return (fast_half(device) if mixed else None) or torch.float32


def storage_dtype(precision: str, device: torch.device, mixed: bool) -> torch.dtype:
    """The type in which the weights of a frozen trunk are kept.

    That in which it computes; under mixed precision on a device without a fast half-precision type
    float16, which is widened layer by layer.
    """
    computed = compute_dtype(precision, device, mixed)
    return torch.float16 if mixed and computed is torch.float32 else computed
