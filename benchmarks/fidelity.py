"""Measure the error of each memory mode: in outputs, in gradients, in a training.

    python benchmarks/fidelity.py --image PHOTO [--trunk FILE] [--output DIR]
    python benchmarks/fidelity.py --image PHOTO --images DIR --labels DIR --classes NAMES

Runs one image through one backbone in every mode and prints the relative errors (2-norm) of the
pyramid's outputs and of the adapters' gradients against the plain path in float64. The adapters'
weights are drawn at random, because the last ones are zero at the start. With --labels the script
also trains a semantic FPN in each mode, from the same weights on the same images, and writes the
losses as a table and a plot.
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from e3va import E3VABackbone, UserError
from e3va.cli.arguments import whole
from e3va.cli.main import build_parser
from e3va.torchvision.curves import read_metrics
from e3va.torchvision.data import read_image, to_tensor
from e3va.torchvision.models import DEMO_TRUNK, MEAN, STD, read_trunk
from e3va.torchvision.trainer import make_folder
from e3va.utils.atomic import atomic_open
from e3va.utils.optional import require
from e3va.weights.loading import load_trunk

# name → memory mode, whether under bfloat16 autocast
MODES = {
    "plain, fp32": ("plain", False),
    "standard, fp32": ("standard", False),
    "lean, fp32": ("lean", False),
    "plain, bf16": ("plain", True),
    "standard, bf16": ("standard", True),
    "lean, bf16": ("lean", True),
}


def load_image(path: Path, side: int) -> Tensor:
    """Read an image as [1, 3, H, W], normalized, with the shorter side ``side``."""
    image = to_tensor(read_image(path))[None]
    scale = side / min(image.shape[2:])
    image = nn.functional.interpolate(image, scale_factor=scale, mode="bilinear")
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def build(trunk: str, memory: str) -> E3VABackbone:
    """Build a backbone with random adapters, the same in every mode."""
    state, preset, source = read_trunk(trunk)
    backbone = E3VABackbone(preset, memory=memory)
    load_trunk(backbone.trunk, state, source)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.highway.named_parameters():
        if name.endswith(("up.weight", "conv.weight", "down.weight")):
            spread = (1.0 if "down" in name else 0.3) / 8  # see DepthwiseConvAdapter
            parameter.data.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return backbone


def run(backbone: E3VABackbone, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return all outputs and all gradients of the highway, each as one float64 vector.

    The loss is a fixed random weighting of the outputs.
    """
    outputs = [out.double() for out in backbone(image).values()]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator) for out in outputs]
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, list(backbone.highway.parameters()))
    return _in_one_row(outputs), _in_one_row(gradients)


def _in_one_row(tensors) -> Tensor:
    return torch.cat([x.detach().flatten().double() for x in tensors])


def errors(trunk: str, image: Tensor) -> dict[str, dict[str, float]]:
    """Return the relative errors by mode."""
    exact = run(build(trunk, "plain").double(), image.double())
    found = {}
    for name, (memory, mixed) in MODES.items():
        backbone = build(trunk, memory)
        backbone.prepare(mixed)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            rows = run(backbone, image)
        values = [float((a - b).norm() / b.norm()) for a, b in zip(rows, exact, strict=True)]
        found[name] = dict(zip(("outputs", "gradients"), values, strict=True))
    return found


def train(args: argparse.Namespace, name: str) -> list[tuple[int, float]]:
    """Train in one mode and return (step, loss) of its log."""
    memory, mixed = MODES[name]
    folder = args.output / "runs" / name.replace(", ", "-")
    options = ["--images", args.images, "--labels", args.labels, "--classes", args.classes]
    options += ["--memory", memory, "--precision", "bf16" if mixed else "fp32"]
    options += ["--trunk", args.trunk, "--steps", args.steps, "--size", args.side]
    options += ["--output", folder]
    if not (folder / "model.pth").is_file():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train_args = build_parser("train").parse_args(["train", *map(str, options)])
            train_args.run(train_args)
    return [(m["step"], m["loss"]) for m in read_metrics(folder) if "loss" in m]


def plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Plot losses over steps."""
    require("matplotlib", "the plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6))
    for number, (name, losses) in enumerate(curves.items()):
        axes.plot(*zip(*losses, strict=True), label=name, lw=1.2, ls=("-", "--", ":")[number % 3])
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=130)


def table(found: dict, curves: dict) -> str:
    """Return a Markdown table with a row for each mode."""
    head, ruler = "| mode | outputs | gradients |", "| --- | ---: | ---: |"
    last = {name: losses[-5:] for name, losses in curves.items()}
    if curves:
        head, ruler = head + " loss of the last 50 steps |", ruler + " ---: |"
    lines = [head, ruler]
    for name, row in found.items():
        line = f"| {name} | {row['outputs']:.1e} | {row['gradients']:.1e} |"
        if curves:
            values = [loss for _, loss in last[name]]
            line += f" {sum(values) / len(values):.4f} |"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, help="a photograph")
    parser.add_argument("--side", type=whole(32), default=320, help="shorter side in pixels")
    parser.add_argument("--trunk", default=DEMO_TRUNK, help="pretrained Swin weights")
    parser.add_argument("--images", help="folder of training images")
    parser.add_argument("--labels", help="folder of their label maps")
    parser.add_argument("--classes", help="class names, label 0 first, separated by commas")
    parser.add_argument("--steps", type=whole(1), default=200)
    parser.add_argument("--output", type=Path, default=Path("output/fidelity"))
    args = parser.parse_args()
    try:
        found = errors(args.trunk, load_image(args.image, args.side))
        make_folder(args.output)
        curves = {}
        for name in MODES if args.labels else ():
            curves[name] = train(args, name)
            print(f"trained: {name}", flush=True)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    text = table(found, curves)
    print(text)
    with atomic_open(args.output / "fidelity.md", "w") as file:
        file.write(f"{text}\n")
    with atomic_open(args.output / "fidelity.json", "w") as file:
        json.dump({"errors": found, "losses": curves}, file, indent=1)
    if curves:
        plot(curves, args.output / "losses.png")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
