"""How much slower is a training step while other programs compute on the same cores?

    python benchmarks/busy.py [--others 0 1 2] [--seconds 20] [--output DIR]

Each subject trains in a process of its own: the fast form (`e3va`), plain modules (`plain`), and
torchvision's Mask R-CNN on a ResNet-50 (`torchvision`); then again beside one and two programs that
keep a core busy each. `wait` are the settings of OpenMP's threads between parallel sections: the
default, in which they spin, and `passive`, in which they sleep. Subjects take turns. Writes busy.md
and busy.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

SUBJECTS, WAITS = ("e3va", "plain", "torchvision"), ("default", "passive")
BUSY = "while True: pass"
CLASSES = ("one", "two", "three")


def build(subject: str, size: int):
    """Build a Mask R-CNN in training mode."""
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from e3va import PRESETS
    from e3va.torchvision import ModelConfig, build_model

    torch.manual_seed(0)
    if subject == "torchvision":
        sizes = {"min_size": size, "max_size": 2 * size}
        return maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=1 + len(CLASSES), **sizes
        ).train()
    memory = "plain" if subject == "plain" else "standard"
    config = ModelConfig(
        model="mask_rcnn",
        classes=CLASSES,
        preset=PRESETS["swin_mini"],
        trunk="random",
        heads="light",
        memory=memory,
        size=size,
        max_size=2 * size,
        category_ids=(1, 2, 3),
    )
    return build_model(config).train()


def work(subject: str, size: int, seconds: float) -> None:
    """Take steps, and print their seconds as JSON."""
    import torch

    model = build(subject, size)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6)
    image = torch.rand(3, size, size)
    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 10.0, 60.0, 70.0], [30.0, 40.0, 100.0, 90.0]])
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 4 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        optimizer.zero_grad()
        sum(model([image, image], [dict(target), dict(target)]).values()).backward()
        optimizer.step()
        found.append(time.perf_counter() - start)
    print(json.dumps(found[2:]))  # the first steps are slower


@contextmanager
def busy(count: int):
    """Let ``count`` programs compute."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(subject: str, wait: str, others: int, args: argparse.Namespace) -> float:
    """Return the median seconds of a step."""
    command = [sys.executable, __file__, "--work", subject]
    command += ["--size", str(args.size), "--seconds", str(args.seconds)]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY",)}
    if wait == "passive":
        environment["OMP_WAIT_POLICY"] = "passive"
    with busy(others):
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--others", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--waits", nargs="+", choices=WAITS, default=list(WAITS))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("output/busy"))
    parser.add_argument("--work", choices=SUBJECTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.size, args.seconds)
        return 0
    from cost.report import machine, markdown, where

    from e3va.utils.atomic import atomic_open, make_folder

    found = {}
    for others in args.others:
        for subject in args.subjects:
            for wait in args.waits:
                seconds = measure(subject, wait, others, args)
                found[f"{subject} {wait} {others}"] = seconds
                print(f"{subject}, {wait}, beside {others}: {seconds:.3f} s", flush=True)
    lines = [["subject", "wait", *(f"beside {others}, s" for others in args.others)]]
    lines[0] += [f"beside {others} / alone" for others in args.others[1:]]
    for subject in args.subjects:
        for wait in args.waits:
            row = [found[f"{subject} {wait} {others}"] for others in args.others]
            ratios = [f"{value / row[0]:.2f}" for value in row[1:]]
            lines.append([subject, wait, *(f"{value:.3f}" for value in row), *ratios])
    about = {"machine": machine("cpu")}
    text = f"{__doc__.splitlines()[0]}\n\n{markdown(lines)}\n\n{where(about)}\n"
    make_folder(args.output)
    with atomic_open(args.output / "busy.md", "w") as file:
        file.write(text)
    with atomic_open(args.output / "busy.json", "w") as file:
        json.dump({**about, "seconds": found}, file, indent=1)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
