"""Bytes that one step keeps for its backward pass: E³VA beside frozen and full, in one run.

The backbone alone, with torch and nothing else:

    python benchmarks/saved_bytes.py --preset swin_t --size 800x1216

A whole detector of a config, on the first batch of its training data, with Detectron2:

    python benchmarks/saved_bytes.py --config-file custom/cascade_mask_rcnn_e3va_swin_t.py \\
        data.train.json=… data.train.images=…

``detectron2`` is full tuning with Detectron2's own Swin. All models have the same weights. Counted
are the tensors that autograd saves, each storage once, without parameters. --output writes the
table, the numbers as JSON and a plot.
"""

import argparse
import json
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from e3va import E3VABackbone
from e3va.backbone import METHODS
from e3va.checkpoint import atomic_open
from e3va.measure import MIB, SavedBytes, count_parameters, track_saved_bytes
from e3va.stream import seed_everything

Measured = dict[str, tuple[int, SavedBytes]]  # method → (trained parameters, bytes)


def measure(model: nn.Module, parts: dict, forward: Callable[[], object]) -> tuple[int, SavedBytes]:
    """Trained parameters of ``model`` and what ``forward`` keeps."""
    rows = count_parameters(model, parts)
    with track_saved_bytes(model, parts) as saved:
        forward()
    return sum(row.trained for row in rows), saved


def measure_backbones(preset: str, size: tuple[int, int], batch: int) -> Measured:
    """Measure the backbone alone with each method."""
    images = torch.rand(batch, 3, *size)
    results = {}
    for method in METHODS:
        model = E3VABackbone(preset, method=method)
        parts = {"trunk": model.trunk, "highway": model.highway}
        results[method] = measure(model, parts, lambda model=model: model(images))
    return results


def measure_detectors(config_file: str, overrides: list[str]) -> Measured:
    """Measure a config's model on the first batch of its training data with each method."""
    from detectron2.config import LazyCall, instantiate
    from detectron2.modeling import SwinTransformer
    from detectron2.utils.events import EventStorage

    from e3va.detectron2 import load_config
    from e3va.detectron2.backbone import model_parts
    from e3va.detectron2.engine import resolve_classes
    from e3va.presets import get_preset

    cfg = load_config(config_file, overrides)
    if "data" in cfg:
        resolve_classes(cfg)
    batch = next(iter(instantiate(cfg.dataloader.train)))
    preset = get_preset(cfg.model.backbone.bottom_up.preset)
    state, results = {}, {}
    for method in (*METHODS, "detectron2"):
        variant = cfg.copy()
        if method == "detectron2":
            variant.model.backbone.bottom_up = LazyCall(SwinTransformer)(
                embed_dim=preset.embed_dim,
                depths=list(preset.depths),
                num_heads=list(preset.num_heads),
                window_size=preset.window,
                drop_path_rate=0.0,
                out_indices=[0, 1, 2, 3],
            )
            variant.model.backbone.in_features = ["p0", "p1", "p2", "p3"]
        else:
            variant.model.backbone.bottom_up.method = method
        model = instantiate(variant.model).to(cfg.train.device).train()
        if not state:
            state = dict(model.state_dict())
            state.update({detectron2_name(key): value for key, value in state.items()})
        # Equal weights give equal proposals, and with them heads of equal size.
        model.load_state_dict(state, strict=False)
        if method == "detectron2":
            parts = {"trunk": model.backbone.bottom_up}
            parts["neck"] = nn.ModuleList(
                m for name, m in model.backbone.named_children() if name != "bottom_up"
            )
            parts["heads"] = nn.ModuleList([model.proposal_generator, model.roi_heads])
        else:
            parts = model_parts(model)
        seed_everything(0)
        with EventStorage():
            results[method] = measure(model, parts, lambda model=model: model(batch))
    return results


def detectron2_name(key: str) -> str:
    """The name that a parameter of the E³VA backbone has in Detectron2's own Swin."""
    key = re.sub(r"highway\.stages\.(\d)\.out_norm", r"norm\1", key)
    return key.replace("bottom_up.trunk.", "bottom_up.")


def table(results: Measured) -> str:
    """Markdown: a row for each method, with its share of ``full``."""
    full = results["full"][1].total
    parts = list(dict.fromkeys(p for _, saved in results.values() for p in saved.by_part))
    lines = [
        f"| method | trained parameters | kept, MiB | / full | {' | '.join(parts)} |",
        f"|---|---|---|---|{'---|' * len(parts)}",
    ]
    for method, (trained, saved) in results.items():
        by_part = " | ".join(f"{saved.by_part.get(part, 0) / MIB:,.1f}" for part in parts)
        lines.append(
            f"| {method} | {trained:,} | {saved.total / MIB:,.1f} | "
            f"{saved.total / full:.2f} | {by_part} |"
        )
    return "\n".join(lines)


def write(results: Measured, title: str, folder: Path) -> None:
    """Write saved_bytes.{md,json,png} into ``folder``."""
    from e3va.optional import require

    require("matplotlib", "the plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / "saved_bytes.md", "w") as file:
        file.write(f"{title}\n\n{table(results)}\n")
    with atomic_open(folder / "saved_bytes.json", "w") as file:
        rows = {m: {"trained": t, "bytes": s.by_part} for m, (t, s) in results.items()}
        json.dump({"title": title, "methods": rows}, file, indent=1)
    figure, axes = pyplot.subplots(figsize=(7, 3.2))
    left = [0.0] * len(results)
    for part in dict.fromkeys(p for _, saved in results.values() for p in saved.by_part):
        sizes = [saved.by_part.get(part, 0) / MIB for _, saved in results.values()]
        axes.barh(list(results), sizes, left=left, label=part)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("MiB kept for the backward pass")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    figure.tight_layout()
    with atomic_open(folder / "saved_bytes.png") as file:
        figure.savefig(file, format="png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="swin_t", help="of the backbone alone")
    parser.add_argument("--size", default="800x1216", help="HEIGHTxWIDTH of its images, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--config-file", help="measure this config's whole model instead")
    parser.add_argument("--output", type=Path, help="folder for table, JSON and plot")
    parser.add_argument("opts", nargs="*", help="key=value of the config")
    args = parser.parse_args()
    machine = f"torch {torch.__version__}, {platform.machine()}"
    if args.config_file:
        results = measure_detectors(args.config_file, args.opts)
        title = f"{Path(args.config_file).stem}, first training batch; {machine}"
    else:
        height, width = map(int, args.size.split("x"))
        results = measure_backbones(args.preset, (height, width), args.batch)
        title = f"{args.preset} backbone, {args.batch} × {height}×{width}; {machine}"
    print(f"{title}\n\n{table(results)}")
    if args.output:
        write(results, title, args.output)
        print(f"\nwrote {args.output}/saved_bytes.md, .json and .png")


if __name__ == "__main__":
    main()
