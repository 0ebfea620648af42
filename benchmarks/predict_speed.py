"""Compare the images a second of `e3va predict` with those of torchvision's own loop.

    python benchmarks/predict_speed.py [--presets swin_mini swin_t] [--images 16] [--rounds 5]
        [--output DIR]

torchvision's loop reads an image, calls ``model([image])``, draws masks and boxes, and writes a
PNG file, one after another. ``e3va predict`` runs with one image and with several in a call, and
in bfloat16. All have as many threads, and the same Mask R-CNN with random weights, which finds the
same ten objects in each drawn image. They take turns in each round. A ratio is that of the speeds
in one round; the table has the median and the range. Writes predict_speed.md and
predict_speed.json.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, read_image, write_png
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost.report import machine, markdown, where
from mask_memory import boxes

from e3va import PRESETS
from e3va.cli.arguments import whole
from e3va.torchvision.models import ModelConfig, build_model, default_heads
from e3va.torchvision.predict import predict_images
from e3va.torchvision.predictor import PredictOptions
from e3va.utils.atomic import atomic_open, make_folder
from e3va.utils.errors import check_choice

OBJECTS, THRESHOLD = 10, 0.5
OURS = {
    "e3va predict": PredictOptions(),
    "e3va predict --batch-size 4": PredictOptions(batch_size=4),
    "e3va predict --precision bf16": PredictOptions(precision="bf16"),
}
THEIRS = "torchvision's loop"


def build(preset: str, size: int):
    """Return a Mask R-CNN that finds fixed boxes, and its config."""
    torch.manual_seed(0)
    config = ModelConfig(
        "mask_rcnn",
        ("thing",),
        PRESETS[preset],
        "random",
        heads=default_heads(PRESETS[preset]),
        size=size,
        max_size=2 * size,
        category_ids=(1,),
    )
    model = build_model(config).eval()

    def postprocess(logits, deltas, proposals, shapes):
        found = [torch.tensor(boxes(OBJECTS, w, h)) for h, w in shapes]
        ones = torch.ones(OBJECTS)
        return found, [0.9 * ones] * len(shapes), [ones.long()] * len(shapes)

    model.roi_heads.postprocess_detections = postprocess
    return model, config


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write noisy gradients of 640×480 pixels as JPEG files of about 100 KB."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = (pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=92)
    return paths


@torch.no_grad()
def torchvision_loop(model, paths: list[Path], folder: Path) -> None:
    for path in paths:
        image = read_image(str(path), ImageReadMode.RGB)
        (found,) = model([image / 255])
        kept = found["scores"] >= THRESHOLD
        masks = found["masks"][kept, 0] >= 0.5
        texts = [f"thing {score:.0%}" for score in found["scores"][kept].tolist()]
        picture = draw_segmentation_masks(image, masks, alpha=0.45)
        picture = draw_bounding_boxes(picture, found["boxes"][kept], texts, width=2)
        write_png(picture, str(folder / f"{path.stem}.png"))


def images_a_second(run: Callable[[], None], count: int) -> float:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        run()
    return count / (time.perf_counter() - began)


def measure(preset: str, args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Return the images a second in each round, by way."""
    model, config = build(preset, args.size)
    paths = write_photos(folder, args.images)
    ways: dict[str, Callable] = {THEIRS: lambda: torchvision_loop(model, paths, folder)}
    for name, options in OURS.items():
        ways[name] = lambda options=options: predict_images(
            model, config, paths, folder / "ours", THRESHOLD, options
        )
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, args.rounds):  # the first round is slower, and does not count
        for name, run in ways.items():
            speed = images_a_second(run, len(paths))
            if number >= 0:
                speeds[name].append(speed)
    return speeds


def table(speeds: dict[str, dict[str, list[float]]]) -> str:
    rows = [["trunk", "way", "images a second", "ratio", "range"]]
    for preset, ways in speeds.items():
        for name, own in ways.items():
            ratios = [one / other for one, other in zip(own, ways[THEIRS], strict=True)]
            middle = f"{statistics.median(own):.2f}", f"{statistics.median(ratios):.2f}"
            rows.append([preset, name, *middle, f"{min(ratios):.2f}–{max(ratios):.2f}"])
    return markdown(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["swin_mini", "swin_t"])
    parser.add_argument("--images", type=whole(1), default=16)
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--size", type=whole(32), default=480, help="shorter side in the model")
    parser.add_argument("--output", default="output/predict_speed")
    args = parser.parse_args()
    speeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in args.presets:
            check_choice("preset", preset, PRESETS)
            speeds[preset] = measure(preset, args, Path(folder))
            print(table({preset: speeds[preset]}), flush=True)
    output, about = make_folder(Path(args.output)), {"machine": machine("cpu")}
    with atomic_open(output / "predict_speed.json", "w") as file:
        json.dump({**about, "speeds": speeds}, file, indent=1)
    with atomic_open(output / "predict_speed.md", "w") as file:
        file.write(
            f"{table(speeds)}\n\n{args.images} images of 640×480 pixels with {OBJECTS} objects "
            f"each, {args.rounds} rounds.\n{where(about)}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
