"""Measure how much memory the masks of many objects need: predicting, evaluating, training.

    python benchmarks/mask_memory.py [--width 4000] [--height 3000] [--cases "torchvision train"]
        [--output benchmarks/results/mask_memory]

Each case runs in a process of its own, once on a photo without objects and once with many. The
table shows the peak resident memory of both. The models have random weights and heads of the usual
widths; where they detect, the boxes are fixed and half as wide and high as the photo. In training,
each object is a polygon of 40 points.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from e3va import get_preset
from e3va.utils.atomic import atomic_open
from e3va.utils.measure import peak_memory

PHOTO = "photo.jpg"


def make_data(folder: Path, width: int, height: int, counts: set[int]) -> None:
    """Write a photo, and for each number of objects a COCO-format file ``<number>.json``."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / PHOTO)
    image = {"id": 1, "file_name": PHOTO, "width": width, "height": height}
    category = {"id": 1, "name": "thing"}
    for count in counts:
        objects = [draw(n, count, width, height) for n in range(count)]
        data = {"images": [image], "annotations": objects, "categories": [category]}
        (folder / f"{count}.json").write_text(json.dumps(data))


def boxes(count: int, width: int, height: int) -> list[tuple[float, float, float, float]]:
    """Return x1 y1 x2 y2 of boxes of half the image's sides, side by side on a diagonal."""
    shifts = [number / max(1, count - 1) / 2 for number in range(count)]
    return [(s * width, s * height, (s + 0.5) * width, (s + 0.5) * height) for s in shifts]


def draw(number: int, count: int, width: int, height: int) -> dict[str, Any]:
    """Return the annotation of an ellipse in one of the boxes."""
    x1, y1, x2, y2 = boxes(count, width, height)[number]
    polygon = []
    for step in range(40):
        angle = 2 * math.pi * step / 40
        polygon += [
            (x1 + x2) / 2 + (x2 - x1) / 2 * math.cos(angle),
            (y1 + y2) / 2 + (y2 - y1) / 2 * math.sin(angle),
        ]
    entry = {"id": number + 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
    size = (x2 - x1, y2 - y1)
    return entry | {"bbox": [x1, y1, *size], "area": size[0] * size[1], "segmentation": [polygon]}


def torchvision_model(detections: int | None = None, kind: str = "mask_rcnn"):
    """Return a model and its config; a detector finds ``detections`` objects if that is given."""
    from e3va.torchvision import ModelConfig, build_model

    torch.manual_seed(0)
    sizes = {"size": 800, "max_size": 1333, "jitter": (1.0, 1.0), "heads": "standard"}
    classes, ids = (("background", "thing"), ()) if kind == "semantic_fpn" else (("thing",), (1,))
    config = ModelConfig(
        kind, classes, get_preset("swin_nano"), "random", category_ids=ids, **sizes
    )
    model = build_model(config)
    if detections is not None and kind == "mask_rcnn":
        find = model.roi_heads

        def postprocess(logits, deltas, proposals, shapes):
            found = torch.tensor([boxes(detections, w, h) for h, w in shapes]).reshape(-1, 4)
            ones = torch.ones(detections)
            return [found], [0.9 * ones], [ones.long()]

        find.postprocess_detections = postprocess
        model.eval()
    return model, config


def torchvision_predict(folder: Path, count: int) -> None:
    from e3va.torchvision.predict import predict_images

    model, config = torchvision_model(detections=count)
    predict_images(model, config, [folder / PHOTO], folder / "predictions", 0.5)


def torchvision_tiles(folder: Path, count: int, kind: str = "mask_rcnn") -> None:
    """Predict tiles of at most 1024 pixels, each with ``count`` objects."""
    from e3va.torchvision.predict import predict_images
    from e3va.torchvision.predictor import PredictOptions
    from e3va.torchvision.tiles import Tiling

    model, config = torchvision_model(detections=count, kind=kind)
    options = PredictOptions(tiling=Tiling(1024, 128))
    predict_images(model.eval(), config, [folder / PHOTO], folder / "tiles", 0.5, options)


def torchvision_label_tiles(folder: Path, count: int) -> None:
    torchvision_tiles(folder, count, "semantic_fpn")


def torchvision_data(folder: Path, count: int):
    from e3va.data.coco import ReadOptions
    from e3va.torchvision.data import coco_dataset

    # Reading for training would refuse an image without objects.
    return coco_dataset(str(folder / f"{count}.json"), str(folder), ReadOptions(training=False))


def torchvision_eval(folder: Path, count: int) -> None:
    from e3va.torchvision.evaluate import evaluate

    model, _ = torchvision_model(detections=count)
    evaluate(model, torchvision_data(folder, count), torch.device("cpu"))


def torchvision_train(folder: Path, count: int) -> None:
    from e3va.torchvision.trainer import Trainer, TrainSettings

    model, config = torchvision_model()
    settings = TrainSettings(steps=2, batch_size=1)
    data = torchvision_data(folder, count)
    Trainer(model, config, settings, data, folder / "run").train()


# A case runs in a process of its own with the folder of make_data and the number of objects.
CASES: dict[str, tuple[Callable[[Path, int], None], tuple[int, ...]]] = {
    "torchvision predict": (torchvision_predict, (100,)),
    "torchvision tiles": (torchvision_tiles, (100,)),
    "torchvision label tiles": (torchvision_label_tiles, (0,)),
    "torchvision eval": (torchvision_eval, (100,)),
    "torchvision train": (torchvision_train, (100, 450)),
}


def measure(case: str, folder: Path, count: int) -> float:
    """Return the peak resident memory of a case in MiB."""
    command = [sys.executable, __file__, "--run", case, str(folder), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}, {count} objects: {done.stderr}")
    return float(done.stdout.split()[-1])


def table(cases: list[str], folder: Path) -> list[str]:
    """Return the lines of the table, and print each row as soon as it is measured."""
    lines = ["| case | objects | peak, MiB | without objects, MiB | difference, MiB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines), flush=True)
    for case in cases:
        without = measure(case, folder, 0)
        for count in CASES[case][1]:
            peak = measure(case, folder, count)
            row = f"| {case} | {count} | {peak:,.0f} | {without:,.0f} | {peak - without:,.0f} |"
            lines.append(row)
            print(row, flush=True)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=4000, help="width of the photo in pixels")
    parser.add_argument("--height", type=int, default=3000, help="height of the photo in pixels")
    parser.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--output", type=Path, help="folder for the table (default: print only)")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        case, folder, count = args.run
        CASES[case][0](Path(folder), int(count))
        print(f"\n{peak_memory()}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        counts = {0, *(count for case in args.cases for count in CASES[case][1])}
        make_data(Path(folder), args.width, args.height, counts)
        lines = table(args.cases, Path(folder))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        size = f"--width {args.width} --height {args.height}"
        with atomic_open(args.output / "mask_memory.md", "w") as file:
            file.write(
                "\n".join(lines) + "\n\nPeak resident memory of a process on a photo of "
                f"{args.width}×{args.height} pixels, one thread; Mask R-CNN, images resized to 800 "
                f"pixels; printed by `python benchmarks/mask_memory.py {size}`; torch "
                f"{metadata.version('torch')}, torchvision {metadata.version('torchvision')}.\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
