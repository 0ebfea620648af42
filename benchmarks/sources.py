"""Compare the stage outputs of a Swin loaded from each library's file with the library's own model.

    python benchmarks/sources.py [--presets swin_t swin_s swin_b swin_l] [--side 448]
        [--output benchmarks/results/sources]

For each source and size: the library's model gets random weights, its state is saved to a file, and
the trunk reads the file. Both run one random image in float32. The table shows the largest absolute
difference of the four stage outputs over the largest absolute value of that output. mmdetection is
represented by its layout: its names of weights, and its patch merging by ``nn.Unfold``.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path

import torch
from torch import Tensor, nn

from e3va import PRESETS, SwinTrunk, UserError
from e3va.swin.presets import SwinPreset
from e3va.utils.atomic import atomic_open, save_atomically
from e3va.weights.checkpoint import load_file, model_state
from e3va.weights.loading import load_trunk

Run = Callable[[Tensor], list[Tensor]]  # the four stages' outputs, [1, H, W, C] or [1, T, C]


def sizes(preset: SwinPreset) -> dict:
    names = ("embed_dim", "depths", "num_heads")
    return {name: getattr(preset, name) for name in names} | {"window_size": preset.window}


def inputs_or_outputs(model: nn.Module, modules: list[nn.Module], of_input: bool = False) -> Run:
    """Return a function that runs ``model`` and returns the outputs or inputs of ``modules``."""
    seen = []
    for module in modules:
        module.register_forward_hook(
            lambda _, given, out: seen.append(given[0] if of_input else out)
        )
    return lambda images: (model(images), seen)[1]


def torchvision_swin(preset: SwinPreset, side: int) -> tuple[nn.Module, Run]:
    from torchvision.models.swin_transformer import SwinTransformer

    counts = (list(preset.depths), list(preset.num_heads))
    model = SwinTransformer([4, 4], preset.embed_dim, *counts, [preset.window] * 2)
    return model, inputs_or_outputs(model, list(model.features[1::2]))


def timm_swin(preset: SwinPreset, side: int) -> tuple[nn.Module, Run]:
    import timm

    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=side, **sizes(preset))
    return model, inputs_or_outputs(model, list(model.layers))


def transformers_swin(preset: SwinPreset, side: int) -> tuple[nn.Module, Run]:
    from transformers import SwinBackbone, SwinConfig

    stages = [f"stage{n}" for n in range(1, 5)]
    model = SwinBackbone(SwinConfig(image_size=side, out_features=stages, **sizes(preset)))

    def run(images: Tensor) -> list[Tensor]:
        maps = model(images, output_hidden_states=True).hidden_states[1:]
        return [m.permute(0, 2, 3, 1) for m in maps]

    return model, run


def detectron2_swin(preset: SwinPreset, side: int) -> tuple[nn.Module, Run]:
    from detectron2.modeling import SwinTransformer

    model = SwinTransformer(**sizes(preset))
    return model, inputs_or_outputs(model, [getattr(model, f"norm{n}") for n in range(4)], True)


class UnfoldMerging(nn.Module):
    """Patch merging of mmdetection: its weights have the order of ``nn.Unfold``."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.reduction(self.norm(nn.functional.unfold(x, 2, stride=2).transpose(1, 2)))


def mmdetection_swin(preset: SwinPreset, side: int) -> tuple[nn.Module, Run]:
    model = SwinTrunk(preset, fast=False)
    for dim, stage in zip(preset.dims, model.layers[:-1], strict=False):
        stage.downsample = UnfoldMerging(dim)
    return model, lambda images: [stage.out for stage in model.stages(images)]


def mmdetection_name(name: str) -> str:
    """Return a weight's name in ``mmdet/models/backbones/swin.py`` from its official name."""
    words = {"patch_embed.proj.": "patch_embed.projection.", ".attn.": ".attn.w_msa."}
    words |= {".mlp.fc1.": ".ffn.layers.0.0.", ".mlp.fc2.": ".ffn.layers.1."}
    for ours, theirs in words.items():
        name = name.replace(ours, theirs)
    return "backbone." + name.replace("layers.", "stages.", name.startswith("layers."))


# Title: the package it needs, the model, the name of a weight in a file.
SOURCES = {
    "torchvision": ("torchvision", torchvision_swin, str),
    "timm": ("timm", timm_swin, str),
    "transformers": ("transformers", transformers_swin, str),
    "Detectron2": ("detectron2", detectron2_swin, str),
    "mmdetection (layout)": ("torch", mmdetection_swin, mmdetection_name),
}


def randomise(model: nn.Module) -> nn.Module:
    """Draw weights with which every part of the network changes the output."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        std = 0.02 if value.dim() > 1 and "table" not in name else 0.3
        mean = 1.0 if value.dim() == 1 and name.endswith("weight") else 0.0
        value.normal_(mean, std, generator=generator)
    return model.eval()


def library_outputs(title: str, preset: SwinPreset, images: Tensor, file: Path) -> list[Tensor]:
    """Return the stage outputs of a library's own model, and write its weights to ``file``."""
    _, build, name_in_file = SOURCES[title]
    model, run = build(preset, images.shape[-1])
    randomise(model)
    state = {name_in_file(name): value for name, value in model.state_dict().items()}
    save_atomically({"model": state}, file)
    return [out.reshape(1, -1, out.shape[-1]).clone() for out in run(images)]


@torch.no_grad()
def largest_difference(title: str, preset: SwinPreset, side: int) -> float:
    """Return the largest difference of the four stages, relative to the library's largest value."""
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "swin.pth"
        expected = library_outputs(title, preset, images, file)
        gc.collect()  # two Swin-L at once are more than needed
        trunk = SwinTrunk(preset, fast=False)
        load_trunk(trunk, model_state(load_file(file), str(file)), str(file))
    pairs = zip(trunk.stages(images, taps=None), expected, strict=True)
    return max(((s.out - want).abs().max() / want.abs().max()).item() for s, want in pairs)


def check(presets: list[str], side: int) -> None:
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown:
        raise UserError(f"--presets {unknown[0]}: expected some of {', '.join(PRESETS)}")
    for name in presets:
        # The libraries differ where windows do not tile a map, or one window covers it.
        step = 32 * PRESETS[name].window
        if side < 2 * step or side % step:
            raise UserError(
                f"--side {side}: expected {2 * step} or a larger multiple of {step}, so that "
                f"windows of {name} tile the map of each stage"
            )


def table(presets: list[str], side: int) -> list[str]:
    """Return the lines of the table, and print each cell as soon as it is measured."""
    lines = [f"| source, {side}×{side} | {' | '.join(presets)} |"]
    lines.append("| --- |" + " ---: |" * len(presets))
    print("\n".join(lines))
    for title, (package, *_) in SOURCES.items():
        if util.find_spec(package) is None:
            print(f"{title}: skipped, because {package} is not installed", file=sys.stderr)
            continue
        lines.append(f"| {title} |")
        print(lines[-1], end="", flush=True)
        for name in presets:
            cell = f" {largest_difference(title, PRESETS[name], side):.1e} |"
            lines[-1] += cell
            print(cell, end="", flush=True)
        print()
    return lines


def versions() -> str:
    packages = ["torch", *(package for package, *_ in SOURCES.values() if package != "torch")]
    found = [p for p in packages if util.find_spec(p) is not None]
    return ", ".join(f"{package} {metadata.version(package)}" for package in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["swin_t", "swin_s", "swin_b", "swin_l"])
    parser.add_argument("--side", type=int, default=448, help="side of the image in pixels")
    parser.add_argument("--output", type=Path, help="folder for the table (default: print only)")
    args = parser.parse_args()
    try:
        check(args.presets, args.side)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = table(args.presets, args.side)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/sources.py --presets {' '.join(args.presets)}"
        with atomic_open(args.output / "sources.md", "w") as file:
            file.write(
                "\n".join(lines) + f"\n\nLargest relative difference of the stage outputs, "
                f"float32 on the CPU; printed by `{command} --side {args.side}`; {versions()}.\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
