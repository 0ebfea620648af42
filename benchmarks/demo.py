"""Run the demonstration: one trunk, tuned along its highway, frozen, and in full.

    python benchmarks/demo.py [--output output/demo] [--steps N]

Draws a data set of aerial views, which the trunk has never seen (benchmarks/land.py), and trains a
model for semantic segmentation on it with each method: same steps, same seed, same heads. Prints
one table. The output folder gets the table, a bar chart of memory and time (cost.png), and
predictions beside the truth (pictures.png). Without --steps, the number of steps follows from the
speed of the machine, so that the whole takes about as long on a slow machine as on a fast one.
"""

import argparse
import importlib.util
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from land import CLASSES, draw_data
from PIL import Image, ImageDraw, ImageFont

from e3va import UserError
from e3va.cli.arguments import whole
from e3va.cli.main import main as e3va
from e3va.torchvision.models import DEMO_TRUNK, ModelConfig, build_model, read_trunk
from e3va.torchvision.predict import draw_labels
from e3va.utils.atomic import atomic_open, rename_atomically
from e3va.utils.command import run_command
from e3va.utils.measure import MIB
from e3va.utils.optional import require

METHODS = {
    "e3va_chain": "highway (E³VA)",
    "frozen": "frozen backbone",
    "full": "full fine-tuning",
}
SIZE, BATCH = 160, 4  # pixels, images
COUNTS = {"train": 120, "val": 40}
MOST_STEPS, LEAST_STEPS = 220, 40
SECONDS = 150  # for the training of all methods
# A step of all three methods together takes about as long as two steps of full fine-tuning.
FULL_STEPS = 2.0
ROWS, PANEL = 4, 192  # of pictures.png


def run(*command: str) -> None:
    """Print a call of the e3va command and run it in this process; exit if it fails."""
    print(f"\n$ {shlex.join(['e3va', *command])}\n", flush=True)
    status = e3va(command)
    if status:
        sys.exit(status)


def data_options(data: Path, split: str, prefix: str = "") -> tuple[str, ...]:
    return (f"--{prefix}images", f"{data}/{split}", f"--{prefix}labels", f"{data}/{split}_labels")


def full_step_seconds() -> float:
    """Measure one step of full fine-tuning at the demonstration's size."""
    preset = read_trunk(DEMO_TRUNK)[1]
    config = ModelConfig(
        "semantic_fpn", CLASSES, preset, DEMO_TRUNK, "full", heads="light", size=SIZE, max_size=SIZE
    )
    model = build_model(config).train()
    images = list(torch.rand(BATCH, 3, SIZE, SIZE))
    targets = [{"labels": torch.zeros(SIZE, SIZE, dtype=torch.long)}] * BATCH
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        sum(model(images, targets).values()).backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def choose_steps() -> int:
    """Return the number of steps for this machine, and say how it was chosen."""
    seconds = full_step_seconds()
    steps = int(SECONDS / (FULL_STEPS * seconds))
    steps = max(LEAST_STEPS, min(MOST_STEPS, steps))
    print(f"One step of full fine-tuning takes {seconds:.2f} seconds on this machine.", end=" ")
    if steps < MOST_STEPS:
        print(
            f"Each method trains for {steps} steps instead of {MOST_STEPS}, so that the "
            "demonstration takes about five minutes. The scores are therefore lower."
        )
    else:
        print(f"Each method trains for {steps} steps.")
    return steps


def train(recipe: str, data: Path, output: Path, steps: int) -> None:
    run(
        *("train", *data_options(data, "train"), *data_options(data, "val", "val-")),
        *("--classes", ",".join(CLASSES), "--recipe", recipe, "--size", str(SIZE)),
        *("--batch-size", str(BATCH), "--steps", str(steps), "--checkpoint-every", "0"),
        *("--output", f"{output}/{recipe}"),
    )


def read_summaries(output: Path) -> dict[str, dict]:
    """Return the title of each method, and the numbers of its row."""
    rows = {}
    for recipe, title in METHODS.items():
        summary = json.loads((output / recipe / "summary.json").read_text())
        parts = summary["parameters"]
        backbone = [parts[part] for part in ("trunk", "highway")]
        rows[title] = {
            "mIoU": summary["scores"]["mIoU"],
            "trained": sum(part["trained"] for part in backbone),
            "all": sum(part["all"] for part in backbone),
            "kept": summary["kept_for_backward_bytes"] / MIB,
            "seconds": summary["seconds_a_step"],
        }
    return rows


def table(rows: dict[str, dict]) -> str:
    """Return a Markdown table with a row for each method."""
    lines = [
        "| | mIoU | trained in the backbone | kept for backward | seconds a step |",
        "|---|---|---|---|---|",
    ]
    for title, row in rows.items():
        share = row["trained"] / row["all"]
        lines.append(
            f"| {title} | {row['mIoU']:.1f} | {row['trained']:,} ({share:.1%}) | "
            f"{row['kept']:.0f} MiB | {row['seconds']:.2f} |"
        )
    return "\n".join(lines)


def draw_cost(rows: dict[str, dict], path: Path) -> None:
    """Draw bars of memory and time for each method."""
    matplotlib = require("matplotlib", "the bar chart")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 2.2), sharey=True)
    panels = (("kept", "MiB kept for the backward pass"), ("seconds", "seconds a step"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        values = [row[key] for row in rows.values()]
        bars = axis.barh(list(rows), values, color=["C2", "C7", "C3"])
        axis.bar_label(bars, fmt="%.0f" if key == "kept" else "%.2f", padding=3)
        axis.set_title(title, fontsize=10)
        axis.set_xlim(right=1.15 * max(values))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=110)


def draw_pictures(data: Path, output: Path, path: Path) -> None:
    """Draw images beside the truth and two methods' predictions, one row for each image."""
    columns = {
        "image": None,
        "truth": data / "val_labels",
        "highway": output / "drawn_e3va_chain" / "labels",
        "full fine-tuning": output / "drawn_full" / "labels",
    }
    top, font = 24, ImageFont.load_default(15)
    sheet = Image.new("RGB", (len(columns) * PANEL, top + ROWS * PANEL), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (title, folder) in enumerate(columns.items()):
        draw.text((column * PANEL + 6, 3), title, "black", font)
        for row, file in enumerate(sorted((data / "val").glob("*.png"))[:ROWS]):
            picture = Image.open(file)
            if folder is not None:  # colors are easier to tell apart on gray
                gray = torch.from_numpy(np.array(picture.convert("L"))).expand(3, -1, -1)
                labels = torch.from_numpy(np.array(Image.open(folder / file.name)))
                picture = Image.fromarray(draw_labels(gray, labels).permute(1, 2, 0).numpy())
            sheet.paste(picture.resize((PANEL, PANEL)), (column * PANEL, top + row * PANEL))
    with rename_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument(
        "--steps",
        type=whole(1),
        help="steps of each method (default: by the machine's speed)",
    )
    return run_command(demonstrate, parser.parse_args())


def demonstrate(args: argparse.Namespace) -> None:
    began, output, data = time.monotonic(), args.output, args.output / "data"
    if any((output / recipe).exists() for recipe in METHODS):
        raise UserError(
            f"{output} already holds a demonstration: remove it or give another --output"
        )
    steps = args.steps or choose_steps()
    print(f"drawing {sum(COUNTS.values())} aerial views of {', '.join(CLASSES)}")
    draw_data(data, COUNTS, SIZE)
    for recipe in METHODS:
        train(recipe, data, output, steps)
    for recipe in ("e3va_chain", "full"):
        model, drawn = f"{output}/{recipe}/model.pth", f"{output}/drawn_{recipe}"
        files = [f"{data}/val/{n:04d}.png" for n in range(1, ROWS + 1)]
        run("predict", model, "--input", *files, "--output", drawn)
    rows = read_summaries(output)
    draw_cost(rows, output / "cost.png")
    draw_pictures(data, output, output / "pictures.png")
    text = (
        f"Semantic segmentation of drawn aerial views, {steps} steps of {BATCH} images of "
        f"{SIZE} px, seed 0\n\n{table(rows)}\n"
    )
    with atomic_open(output / "table.md", "w") as file:
        file.write(text)
    print(f"\n{text}")
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes. Look at {output}/pictures.png and "
        f"{output}/cost.png.\n"
    )
    say_next()


def say_next() -> None:
    """Print the next steps after the demonstration."""
    is_installed = importlib.util.find_spec("detectron2") is not None
    where = "." if is_installed else " (its documentation says how to install it)."
    print(
        "Next, the same on your own images (for label maps see e3va train --help):\n"
        "  .venv/bin/e3va train --images photos --annotations photos.json \\\n"
        "    --val-images more --val-annotations more.json \\\n"
        "    --trunk swin_tiny_patch4_window7_224    # downloaded; see e3va zoo list\n"
        f"or with Detectron2, see projects/E3VA/README.md{where}"
    )


if __name__ == "__main__":
    sys.exit(main())
