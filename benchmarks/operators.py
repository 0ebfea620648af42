"""Time the operators of the fast forms beside the obvious ones.

    python benchmarks/operators.py [--output DIR]

The sizes are those of Swin-L on an 800×1216 image, on a CPU: products with weights (oneDNN's beside
``F.linear``), with and without GELU; attention in windows in bfloat16 (in steps beside the fused
operator); the weight gradient of the highway's depthwise convolution in bfloat16 (in float32 beside
bfloat16). The table shows medians of interleaved rounds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost import report

from e3va.ops.products import Product
from e3va.swin import fast_trunk
from e3va.torchvision.trainer import make_folder
from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError

ROUNDS = 15
Pair = tuple[Callable[[], object], Callable[[], object]]


def products(dtype: torch.dtype, channels: int = 768, rows: int = 1365) -> dict[str, Pair]:
    """Return the MLP's first product on one chunk of tokens, without and with GELU."""
    weight = torch.randn(4 * channels, channels, dtype=dtype)
    bias, x = torch.randn(4 * channels, dtype=dtype), torch.randn(rows, channels, dtype=dtype)
    product = Product(weight, bias, dtype, rows, calls=2)
    name = f"product {rows}×{channels}×{4 * channels}, {str(dtype).removeprefix('torch.')}"
    return {
        name: (lambda: F.linear(x, weight, bias), lambda: product(x)),
        f"{name}, GELU": (lambda: F.gelu(F.linear(x, weight, bias)), lambda: product(x, "gelu")),
    }


def attention(windows: int = 88, heads: int = 6, side: int = 7, dim: int = 32) -> dict[str, Pair]:
    """Return attention in some windows of the first stage."""
    qkv = torch.randn(3, windows, heads, side**2, dim, dtype=torch.bfloat16)
    bias = torch.randn(heads, side**2, side**2)
    half = bias.bfloat16()
    return {
        f"attention, {windows} windows of {side**2}, {heads} heads, bfloat16": (
            lambda: fast_trunk._attend_fused(qkv, half),
            lambda: fast_trunk._attend_in_steps(qkv, bias),
        )
    }


def convolution(rank: int = 72, height: int = 200, width: int = 304) -> dict[str, Pair]:
    """Return the weight gradient of a depthwise 5×5 convolution on the first stage's map."""
    x, gradient = (
        torch.randn(1, height, width, rank, dtype=torch.bfloat16).permute(0, 3, 1, 2)
        for _ in range(2)
    )
    kernel = torch.randn(rank, 1, 5, 5, dtype=torch.bfloat16)

    def run(dtype: torch.dtype) -> None:
        torch.ops.aten.convolution_backward(
            *(t.to(dtype) for t in (gradient, x, kernel)),
            None,
            *([1, 1], [2, 2], [1, 1], False, [0, 0], rank, [False, True, False]),
        )

    name = f"weight gradient of a depthwise 5×5, {rank} × {height}×{width}, bfloat16"
    return {name: (lambda: run(torch.bfloat16), lambda: run(torch.float32))}


def medians(pair: Pair) -> list[float]:
    """Return the median seconds of each of the two, which run in turn."""
    seconds: list[list[float]] = [[], []]
    for number in range(ROUNDS + 2):  # two warm-ups
        for run, times in zip(pair, seconds, strict=True):
            began = time.perf_counter()
            run()
            if number > 1:
                times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for operators.md")
    args = parser.parse_args()
    try:
        if args.output:
            make_folder(args.output)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    pairs = {**products(torch.float32), **products(torch.bfloat16), **attention(), **convolution()}
    lines = ["| | obvious, ms | taken, ms | times as fast |", "| --- | ---: | ---: | ---: |"]
    for name, pair in pairs.items():
        obvious, taken = (1000 * value for value in medians(pair))
        lines.append(f"| {name} | {obvious:.2f} | {taken:.2f} | {obvious / taken:.1f} |")
    text = "\n".join(lines)
    print(text)
    if args.output:
        about = report.where({"machine": report.machine("cpu")})
        with atomic_open(args.output / "operators.md", "w") as file:
            file.write(f"{text}\n\n{about}\n")
        print(f"wrote {args.output / 'operators.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
