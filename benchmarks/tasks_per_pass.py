"""Compare predictions of several tasks from one trunk pass, from a pass for each, and without.

    python benchmarks/tasks_per_pass.py [--presets swin_t swin_l] [--counts 1 2 4 8] [--output DIR]

For K tasks on one image: ``one pass`` shares a pass of the trunk, as AdapterSet.predict_all does;
``K passes`` calls the K models over the shared trunk one after another; ``K networks`` calls a
fully tuned network K times, for K networks with trunks of their own, which run by plain modules.
All have random weights and take turns in each round. Memory is that of the weights, each storage
once.
Writes tasks_per_pass.md, tasks_per_pass.json and tasks_per_pass.png.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost.report import machine, markdown, where

from e3va import PRESETS, UserError
from e3va.cli.arguments import pick_device, whole
from e3va.swin.shared_passes import share_passes
from e3va.torchvision.models import ModelConfig, build_model
from e3va.torchvision.trainer import make_folder
from e3va.torchvision.transform import detect
from e3va.utils.atomic import atomic_open
from e3va.utils.errors import check_choice
from e3va.utils.optional import require

MODELS = ("semantic_fpn", "mask_rcnn")
WAYS = ("one pass", "K passes", "K networks")
CLASSES = tuple(map(str, range(10)))
MIB = 2**20


def build(model: str, preset: str, highway: str, size: int, trunk=None) -> nn.Module:
    """Build a model in evaluation mode, with random weights."""
    config = ModelConfig(
        model=model,
        classes=CLASSES,
        preset=PRESETS[preset],
        trunk="random",
        highway=highway,
        size=size,
        max_size=2 * size,
        memory="plain" if highway == "full" else "standard",
    )
    return build_model(config, trunk).eval()


def held(models: list[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers, each storage once."""
    found = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


class Tasks:
    """The models of up to K tasks of one kind.

    Args:
        model: key of :data:`e3va.torchvision.models.MODELS`.
        preset: name of a trunk's geometry.
        count: the largest K.
        size: shorter side of the image, whose longer side is 4/3 of it.
        device: device of all.
    """

    def __init__(self, model: str, preset: str, count: int, size: int, device: torch.device):
        torch.manual_seed(0)
        first = build(model, preset, "e3va_chain", size)
        self.trunk = first.backbone.bottom_up.trunk
        more = [build(model, preset, "e3va_chain", size, self.trunk) for _ in range(count - 1)]
        self.models = [own.to(device) for own in (first, *more)]
        self.network = build(model, preset, "full", size).to(device)
        self.image = torch.rand(3, size, size * 4 // 3, device=device)

    def run(self, way: str, count: int) -> None:
        """Predict for ``count`` tasks."""
        if way == "K networks":
            for _ in range(count):
                detect(self.network, self.image)
        elif way == "K passes":
            for model in self.models[:count]:
                detect(model, self.image)
        else:
            with share_passes(self.trunk) as passes:
                for model in self.models[:count]:
                    detect(model, self.image)
                assert len(passes.readers) == 1

    def memory(self, way: str, count: int) -> int:
        """Return the bytes of the weights."""
        if way == "K networks":
            return count * held([self.network])
        return held(self.models[:count])


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Time one call."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@torch.no_grad()
def measure(tasks: Tasks, counts: list[int], rounds: int, device: torch.device) -> list[dict]:
    """Measure all ways for each number of tasks, in turn."""
    for way in WAYS:  # a first call is slow
        tasks.run(way, max(counts))
    rows = []
    for count in counts:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(seconds(partial(tasks.run, way, count), device))
        memory = {way: tasks.memory(way, count) for way in WAYS}
        rows.append({"tasks": count, "seconds": found, "bytes": memory})
    return rows


def ratio(row: dict, way: str, other: str) -> float:
    """Return the median over the rounds of the quotient of two ways' seconds."""
    pairs = zip(row["seconds"][way], row["seconds"][other], strict=True)
    return statistics.median(a / b for a, b in pairs)


def table(found: list[dict]) -> str:
    """Return the table of all measurements."""
    lines = [
        ["model", "Swin", "tasks", "one pass, s", "/ K passes", "/ K networks", "weights, MiB"]
        + ["/ K networks"]
    ]
    for one in found:
        for row in one["rows"]:
            own, other = row["bytes"]["one pass"], row["bytes"]["K networks"]
            lines.append(
                [one["model"], one["preset"], str(row["tasks"])]
                + [f"{statistics.median(row['seconds']['one pass']):.3f}"]
                + [f"{ratio(row, 'one pass', way):.2f}" for way in WAYS[1:]]
                + [f"{own / MIB:,.0f}", f"{own / other:.2f}"]
            )
    return markdown(lines)


def plot(found: list[dict], path: Path) -> None:
    """Plot time and memory over the number of tasks, relative to K networks."""
    matplotlib = require("matplotlib", "the plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for one in found:
        counts = [row["tasks"] for row in one["rows"]]
        times = [ratio(row, "one pass", "K passes") for row in one["rows"]]
        memory = [row["bytes"]["one pass"] / row["bytes"]["K networks"] for row in one["rows"]]
        for axis, values in zip(axes, (times, memory), strict=True):
            axis.plot(counts, values, "o-", label=f"{one['model']}, {one['preset']}")
    for axis, title in zip(
        axes, ("seconds / those of K passes", "weights / those of K networks"), strict=True
    ):
        axis.set(xlabel="tasks", title=title, ylim=(0, 1.1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["swin_t", "swin_l"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--counts", nargs="+", type=whole(1), default=[1, 2, 4, 8])
    parser.add_argument("--size", type=whole(32), default=384, help="shorter side of the image")
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--output", type=Path, default=Path("output/tasks_per_pass"))
    args = parser.parse_args()
    try:
        for preset in args.presets:
            check_choice("--presets", preset, PRESETS)
        device = pick_device(args.device)
        make_folder(args.output)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    about, found = {"machine": machine(str(device))}, []
    for preset in args.presets:
        for model in args.models:
            tasks = Tasks(model, preset, max(args.counts), args.size, device)
            rows = measure(tasks, sorted({*args.counts}), args.rounds, device)
            found.append({"model": model, "preset": preset, "size": args.size, "rows": rows})
            print(table(found[-1:]), flush=True)
            text = f"{__doc__.splitlines()[0]}\n\n{table(found)}\n\n{where(about)}\n"
            with atomic_open(args.output / "tasks_per_pass.md", "w") as file:
                file.write(text)
            with atomic_open(args.output / "tasks_per_pass.json", "w") as file:
                json.dump({**about, "tables": found}, file, indent=1)
            plot(found, args.output / "tasks_per_pass.png")
    print(f"wrote {args.output}: tasks_per_pass.md, .json, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
