"""Part forward: the frozen trunk's forward pass in several forms, beside other programs' Swins."""

import math
from unittest import mock

import torch
import torch.nn.functional as F
from trunk_speed import contestants, read

from e3va import SwinTrunk
from e3va.swin import fast_trunk
from e3va.utils.errors import UserError
from e3va.utils.optional import require

from .part import Part
from .subjects import autocast

CHUNKS = (16, 64, 256, 1024)  # MiB
PADDED = (49, 56, 64)  # tokens of a window of 7×7, and with padding


def run(part: Part) -> None:
    """Measure forms, chunk sizes and attention."""
    presets = ("swin_nano",) if part.short else ("swin_l", "swin_t")
    size = (64, 96) if part.short else (800, 1333)
    for preset in presets:
        for precision in ("fp32", part.half) if not part.short else ("fp32",):
            with part.attempt(f"forward of {preset}, {precision}"):
                _forms(part, preset, precision, size)
    with part.attempt("chunk sizes"):
        _chunks(part, presets[0], size)
    with part.attempt("attention in windows"):
        _attention(part)
    for preset in presets:
        with part.attempt(f"compiled forward of {preset}"):
            _compiled(part, preset, size)


@torch.no_grad()
def _forms(part: Part, preset: str, precision: str, size: tuple[int, int]) -> None:
    images = torch.rand(1, 3, *size, device=part.device)
    runs = contestants(preset, precision, images)
    found = {name: part.seconds(run) for name, run in runs.items()}
    part.record("forward", preset=preset, precision=precision, seconds=found)


@torch.no_grad()
def _compiled(part: Part, preset: str, size: tuple[int, int]) -> None:
    """Compile the stages of the plain and of the fast form; it takes a minute each."""
    backend = "eager" if part.short else "inductor"
    images = torch.rand(1, 3, *size, device=part.device)
    for form in ("plain", "fast"):
        if part.out_of_time(0 if part.short else 30):
            part.record("notes", text=f"compiled {form} form of {preset}: no time left")
            continue
        fast = form == "fast"
        trunk = SwinTrunk(preset, fast=fast, precision=part.half if fast else "auto")
        trunk = trunk.to(part.device)
        for layer in trunk.layers:
            layer.compile(backend=backend, dynamic=False)

        def forward(trunk: SwinTrunk = trunk) -> None:
            with autocast(part.device, part.half):
                read(trunk, images)

        # The fast form is one function for all blocks, whose sizes differ.
        with torch._dynamo.config.patch(recompile_limit=128):
            found = part.seconds(forward)
        part.record(
            "forward", preset=preset, precision=part.half, seconds={f"{form}, compiled": found}
        )


@torch.no_grad()
def _chunks(part: Part, preset: str, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, device=part.device)
    trunk = SwinTrunk(preset, precision=part.half).to(part.device)
    for mib in CHUNKS[:1] if part.short else CHUNKS:
        with (
            mock.patch.dict(fast_trunk.CHUNK_BYTES, {part.device.type: mib * 2**20}),
            autocast(part.device, part.half),
        ):
            part.record(
                "chunks", preset=preset, mib=mib, seconds=part.seconds(lambda: read(trunk, images))
            )


@torch.no_grad()
def _attention(part: Part) -> None:
    """Time attention in windows of 49 tokens, padded or not, by each operator."""
    windows, heads, depth = (8, 2, 8) if part.short else (5600, 6, 32)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[part.half]
    for tokens in PADDED:
        query, key, value = torch.randn(
            3, windows, heads, tokens, depth, device=part.device, dtype=dtype
        )
        bias = torch.randn(1, heads, tokens, tokens, device=part.device, dtype=dtype)
        bias[..., PADDED[0] :] = -math.inf

        def fused(q=query, k=key, v=value, b=bias):
            F.scaled_dot_product_attention(q, k, v, attn_mask=b)

        def by_hand(q=query, k=key, v=value, b=bias):
            (q @ k.transpose(-2, -1) * depth**-0.5 + b).softmax(-1) @ v

        for operator, work in (("scaled_dot_product_attention", fused), ("products", by_hand)):
            seconds = part.seconds(work)
            part.record("attention", tokens=tokens, operator=operator, seconds=seconds)
    if part.cuda:
        with part.attempt("FlexAttention"):
            _flex_attention(part, windows, heads, depth, dtype)


def _flex_attention(part: Part, windows: int, heads: int, depth: int, dtype) -> None:
    try:
        flex = require("torch.nn.attention.flex_attention", "FlexAttention").flex_attention
    except UserError:
        return
    tokens = PADDED[-1]
    tensors = torch.randn(3, windows, heads, tokens, depth, device=part.device, dtype=dtype)
    bias = torch.randn(heads, tokens, tokens, device=part.device, dtype=dtype)

    def biased(score, batch, head, query, key):
        return torch.where(key < PADDED[0], score + bias[head, query, key], -math.inf)

    compiled = torch.compile(flex, dynamic=False)
    seconds = part.seconds(lambda: compiled(*tensors, score_mod=biased))
    part.record("attention", tokens=tokens, operator="FlexAttention", seconds=seconds)
