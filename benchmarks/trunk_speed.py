"""Time the frozen trunk's forward pass beside Detectron2's and timm's Swin, in one run.

    python benchmarks/trunk_speed.py [--presets swin_t swin_b swin_l] [--precision fp32 bf16]

All run under no_grad on one image, in turn, so that a noisy machine disturbs them alike; ratios are
taken within each round. ``plain`` is this project's trunk with its plain modules. timm's Swin has
its weights in the given precision. Detectron2's Swin, which does not accept half-precision weights,
and ``plain`` run under autocast. timm and Detectron2 are skipped if they are not installed.
``reached`` is the trunk's rate of arithmetic divided by the machine's rate, which is measured with
a large product of square matrices in the same precision.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost import limits, meters, report

from e3va import PRESETS, SwinTrunk, UserError
from e3va.cli.arguments import pick_device, whole
from e3va.torchvision.trainer import make_folder
from e3va.utils.atomic import atomic_open

Forward = Callable[[], object]


def read(trunk: SwinTrunk, images: torch.Tensor) -> None:
    """Run a trunk and drop its stages."""
    for stage in trunk.stages(images, taps=None):
        del stage


def contestants(preset: str, precision: str, images: torch.Tensor) -> dict[str, Forward]:
    """Return the forward passes by name."""
    dtype, device = limits.DTYPES[precision], images.device
    fast = SwinTrunk(preset, precision=precision).to(device, dtype)
    plain = SwinTrunk(preset, fast=False).to(device)
    size = {
        "embed_dim": fast.preset.embed_dim,
        "depths": fast.preset.depths,
        "num_heads": fast.preset.num_heads,
        "window_size": fast.preset.window,
        "drop_path_rate": 0.0,
    }
    inputs, mixed = images.to(dtype), precision != "fp32"

    def autocast(run: Forward) -> Forward:
        def forward() -> None:
            with torch.autocast(device.type, dtype, enabled=mixed):
                run()

        return forward

    found = {"fast": lambda: read(fast, images), "plain": autocast(lambda: read(plain, images))}
    with contextlib.suppress(ModuleNotFoundError):
        from timm.models.swin_transformer import SwinTransformer

        shape = {"img_size": tuple(images.shape[2:]), "always_partition": True}
        timm = SwinTransformer(**shape, **size).to(device, dtype).eval()
        options = {"intermediates_only": True, "norm": False}
        found["timm"] = lambda: timm.forward_intermediates(inputs, **options)
    with contextlib.suppress(ModuleNotFoundError):
        from detectron2.modeling import SwinTransformer

        detectron2 = SwinTransformer(**size).to(device).eval()
        found["detectron2"] = autocast(lambda: detectron2(images))
    return found


def measure(preset: str, precision: str, images: torch.Tensor, rounds: int) -> dict:
    """Measure the seconds of each contestant in each round, and the FLOPs of ``plain``."""
    runs = contestants(preset, precision, images)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for number in range(rounds + 1):  # the first is a warm-up
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                if images.is_cuda:
                    torch.cuda.synchronize()
                if number:
                    seconds[name].append(time.perf_counter() - began)
        with meters.flop_counter() as counter:
            runs["plain"]()
    rate = limits.measure(images.device, precision)
    return {
        "preset": preset,
        "precision": precision,
        "size": list(images.shape[2:]),
        "seconds": seconds,
        "flops": counter.get_total_flops(),
        "limits": rate,
    }


def row(found: dict) -> str:
    """Return a line of the table: seconds, ratios, and the share of the machine's rate."""
    seconds = found["seconds"]
    fast = statistics.median(seconds["fast"])
    cells = [found["preset"], found["precision"], f"{fast:.3f}"]
    for name in ("plain", "timm", "detectron2"):
        if name in seconds:
            ratios = [b / a for a, b in zip(seconds["fast"], seconds[name], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
        else:
            cells.append("–")
    least = found["flops"] / found["limits"]["flops"]
    cells += [f"{least:.3f}", f"{least / fast:.0%}"]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["swin_t", "swin_b", "swin_l"])
    parser.add_argument("--precision", nargs="+", choices=limits.DTYPES, default=["fp32", "bf16"])
    parser.add_argument("--size", nargs=2, type=whole(1), default=[800, 1216], metavar=("H", "W"))
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, help="folder for trunk_speed.json and .md")
    args = parser.parse_args()
    try:
        unknown = sorted(set(args.presets) - set(PRESETS))
        if unknown:
            raise UserError(f"--presets {unknown[0]}: expected some of {', '.join(PRESETS)}")
        device = pick_device(args.device)
        if args.output:
            make_folder(args.output)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    images = torch.rand(1, 3, *args.size, device=device)
    head = "| Swin | precision | seconds | plain | timm | Detectron2 | limit, s | reached |"
    lines = [head, "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    print("\n".join(lines))
    found = []
    for preset in args.presets:
        for precision in args.precision:
            found.append(measure(preset, precision, images, args.rounds))
            lines.append(row(found[-1]))
            print(lines[-1], flush=True)
    if args.output:
        about = {"machine": report.machine(str(device))}
        with atomic_open(args.output / "trunk_speed.json", "w") as file:
            json.dump({**about, "rows": found}, file, indent=1)
        text = "\n".join(lines)
        with atomic_open(args.output / "trunk_speed.md", "w") as file:
            file.write(f"{__doc__.splitlines()[0]}\n\n{text}\n\n{report.where(about)}\n")
        print(f"wrote {args.output}: trunk_speed.json, trunk_speed.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
