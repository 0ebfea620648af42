"""Compare the sizes of adapter files and of whole models on disk.

    python benchmarks/adapter_sizes.py [--output benchmarks/results/adapters]

Builds each model over Swin-T to L for 80 classes (150 for label maps), writes its adapter files and
the whole model into a temporary folder, and prints a table in MiB. The column "highway" is the
backbone's part of the adapter file; neck and heads are the rest.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from e3va import get_preset
from e3va.adapter_files.files import MODEL_FILE, save_adapter
from e3va.torchvision import ModelConfig, build_model
from e3va.utils.atomic import atomic_open, save_atomically
from e3va.utils.measure import MIB

PRESETS = ("swin_t", "swin_s", "swin_b", "swin_l")
MODELS = {"semantic_fpn": 150, "mask_rcnn": 80, "cascade_mask_rcnn": 80}


def sizes(model_name: str, preset: str, folder: Path) -> tuple[float, float, float]:
    """Return MiB of the highway, of the adapter file and of the whole model's file."""
    classes = tuple(f"class {n}" for n in range(MODELS[model_name]))
    model = build_model(ModelConfig(model_name, classes, get_preset(preset), "random"))
    save_adapter(model, folder, classes=classes)
    save_atomically({"model": model.state_dict()}, folder / "model.pth")
    highway = sum(
        p.numel() * p.element_size() for p in model.backbone.bottom_up.highway.parameters()
    )
    files = (folder / MODEL_FILE, folder / "model.pth")
    return highway / MIB, *(path.stat().st_size / MIB for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for the table (default: print only)")
    args = parser.parse_args()
    lines = ["| model | Swin | highway | adapter file | whole model | adapter / whole |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))
    for model_name in MODELS:
        for preset in PRESETS:
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                highway, adapter, whole = sizes(model_name, preset, Path(folder))
            lines.append(
                f"| {model_name} | {preset} | {highway:.1f} | {adapter:.1f} | {whole:.1f} | "
                f"{adapter / whole:.0%} |"
            )
            print(lines[-1], flush=True)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        with atomic_open(args.output / "sizes.md", "w") as file:
            file.write(
                "\n".join(lines) + "\n\nMiB; printed by `python benchmarks/adapter_sizes.py`.\n"
            )


if __name__ == "__main__":
    main()
