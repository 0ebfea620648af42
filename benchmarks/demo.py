"""Run the demonstration: one small trunk, tuned along its highway, frozen, and in full.

    python benchmarks/demo.py [--output output/demo] [--steps 220]

Draws a data set of things that the trunk has never seen (benchmarks/things.py), trains a Mask R-CNN
on it with each method (same steps, same seed), and prints one table. The output folder gets the
table, the learning curves, and pictures with the predictions of the model with a highway. --random
adds a frozen backbone with random weights, which shows the effect of the pretraining.
"""

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from e3va.utils.atomic import atomic_open, rename_atomically
from e3va.utils.measure import MIB

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    "highway (E³VA)": ("e3va_chain", "--recipe", "e3va_chain"),
    "frozen backbone": ("frozen", "--recipe", "frozen"),
    "full fine-tuning": ("full", "--recipe", "full"),
}
RANDOM = {
    "frozen, random trunk": (
        *("random", "--recipe", "frozen", "--trunk", "random", "--preset", "swin_micro"),
    )
}
SIZE = 128  # pixels


def run(*command: str) -> None:
    """Print and run a command as a user would; exit if it fails."""
    print(f"\n$ {shlex.join(command)}\n", flush=True)
    start = {"python": [sys.executable], "e3va": [sys.executable, "-m", "e3va"]}
    done = subprocess.run([*start[command[0]], *command[1:]])
    if done.returncode:
        sys.exit(done.returncode)


def train(name: str, options: tuple[str, ...], data: Path, output: Path, steps: int) -> None:
    """Train with one method."""
    files = []
    for prefix, split in (("", "train"), ("val-", "val")):
        files += [f"--{prefix}images", f"{data}/{split}"]
        files += [f"--{prefix}annotations", f"{data}/{split}.json"]
    run(
        *("e3va", "train", *files, *options, "--size", str(SIZE), "--batch-size", "8"),
        *("--steps", str(steps), "--eval-every", str(-(-steps // 3))),
        *("--checkpoint-every", "0", "--output", f"{output}/{name}"),
    )


def table(methods: dict[str, tuple], output: Path) -> str:
    """Return a Markdown table with a row for each method."""
    lines = [
        "| | AP box | AP mask | trained in the backbone | trained | kept for backward | s/step |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, (name, *_) in methods.items():
        summary = json.loads((output / name / "summary.json").read_text())
        parts, scores = summary["parameters"], summary["scores"]
        backbone = sum(parts[part]["trained"] for part in ("trunk", "highway"))
        lines.append(
            f"| {title} | {scores['AP box']:.1f} | {scores['AP mask']:.1f} | {backbone:,} | "
            f"{sum(p['trained'] for p in parts.values()):,} | "
            f"{summary['kept_for_backward_bytes'] / MIB:.1f} MiB | "
            f"{summary['seconds_a_step']:.2f} |"
        )
    return "\n".join(lines)


def write_curves(methods: dict[str, tuple], output: Path) -> None:
    """Draw the learning curves of all methods."""
    from e3va.torchvision.curves import plot, read_metrics

    runs = {title: read_metrics(output / name) for title, (name, *_) in methods.items()}
    plot(runs, output / "curves.png")


def write_sheet(folder: Path, path: Path, rows: int = 2, columns: int = 4) -> None:
    """Put the first pictures of a folder side by side."""
    pictures = [Image.open(p) for p in sorted(folder.glob("*.png"))[: rows * columns]]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    sheet = sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS)
    with rename_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--steps", type=int, default=220, help="training steps of each method")
    parser.add_argument(
        "--random", action="store_true", help="add a frozen trunk with random weights"
    )
    args = parser.parse_args()
    began, output, data = time.monotonic(), args.output, args.output / "data"
    if (output / "e3va_chain").exists():
        sys.exit(
            f"error: {output} already holds a demonstration: remove it or give another --output"
        )
    methods = METHODS | (RANDOM if args.random else {})
    run("python", str(ROOT / "benchmarks/things.py"), str(data), "--size", str(SIZE))
    for name, *options in methods.values():
        train(name, tuple(options), data, output, args.steps)
    run(
        *("e3va", "predict", f"{output}/e3va_chain/model.pth", "--input", f"{data}/val"),
        *("--output", f"{output}/drawn"),
    )
    # The adapter of this very training is in the model zoo; its table has these scores.
    run(
        *("e3va", "eval", "e3va://drawn_things", "--images", f"{data}/val"),
        *("--annotations", f"{data}/val.json"),
    )
    write_curves(methods, output)
    write_sheet(output / "drawn", output / "drawn.png")
    result = table(methods, output)
    title = f"Mask R-CNN on drawn things, {args.steps} steps of 8 images of {SIZE} px, seed 0"
    with atomic_open(output / "table.md", "w") as file:
        file.write(f"{title}\n\n{result}\n")
    print(f"\n{title}\n\n{result}\n")
    print(
        f"{(time.monotonic() - began) / 60:.1f} minutes. Look at {output}/drawn and curves.png.\n"
    )
    say_next()


def say_next() -> None:
    """Print the next steps after the demonstration."""
    print(
        "Next, the same on your own images (for label maps see e3va train --help):\n"
        "  .venv/bin/e3va train --images photos --annotations photos.json \\\n"
        "    --val-images more --val-annotations more.json \\\n"
        "    --trunk swin_tiny_patch4_window7_224    # downloaded; see e3va zoo list\n"
        "or with Detectron2, see projects/E3VA/README.md"
        + (
            "."
            if importlib.util.find_spec("detectron2")
            else " (install it as\nhttps://detectron2.readthedocs.io/tutorials/install.html says)."
        )
    )


if __name__ == "__main__":
    main()
