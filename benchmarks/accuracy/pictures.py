"""Pictures of what two methods predict for the same test images."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont

from e3va.torchvision.data import read_example
from e3va.torchvision.models import load_state
from e3va.torchvision.predict import draw_instances, draw_labels
from e3va.torchvision.trainer import MODEL
from e3va.utils.atomic import rename_atomically
from e3va.weights.checkpoint import load_file, model_state

from .comparisons import Plan
from .methods import DEFAULT, METHODS
from .runs import Run, build
from .tasks import TASKS

if TYPE_CHECKING:
    from .schedule import Schedule

PAIR = ("full", DEFAULT)
# Number of pairs, the height of a picture and of the text above it in pixels, the least score.
PAIRS, PANEL, TEXT, DRAWN_FROM = 12, 256, 18, 0.5


def pictured(equal_steps: Plan) -> set[Run]:
    """Return the runs whose models the pictures need: both methods of the pair, seed 0."""
    both = {task for task, _ in equal_steps if all((task, m) in equal_steps for m in PAIR)}
    return {equal_steps[task, method][0] for task in both for method in PAIR}


def draw_pairs(schedule: "Schedule", equal_steps: Plan) -> None:
    """Draw all pairs; the tasks share their number.

    Tasks with given data get a file of their own, because their pictures may not be free to show.
    """
    wanted = {run.task for run in pictured(equal_steps)}
    tasks = [task for task in dict.fromkeys(task for task, _ in equal_steps) if task in wanted]
    pairs: dict[str, list[Image.Image]] = {}
    for place, task in enumerate(tasks):
        count = PAIRS // len(tasks) + (place < PAIRS % len(tasks))
        sides = [_draw(schedule, equal_steps[task, method][0], count) for method in PAIR]
        name = "pairs.png" if TASKS[task].source == "drawn" else "pairs_given.png"
        pairs.setdefault(name, []).extend(_beside(task, *two) for two in zip(*sides, strict=True))
    for name, drawn in pairs.items():
        _write_sheet(drawn, schedule.output / name)


@torch.no_grad()
def _draw(schedule: "Schedule", run: Run, count: int) -> list[Image.Image]:
    data, file = TASKS[run.task].load(schedule.sources, "test"), schedule.folder(run) / MODEL
    model, config = build(run, data.classes, data.category_ids)
    load_state(model, model_state(load_file(file), str(file)), str(file))
    pictures, total = [], len(data.records)
    count = min(count, total)
    for place in range(count):
        image, _ = read_example(data.records[place * total // count], data)
        found = model.eval()([image])[0]
        if data.coco is None:
            drawn = draw_labels(image, found["labels"])
        else:
            drawn = draw_instances(image, found, config.classes, DRAWN_FROM)
        picture = Image.fromarray(drawn.permute(1, 2, 0).numpy())
        pictures.append(picture.resize((picture.width * PANEL // picture.height, PANEL)))
    return pictures


def _beside(task: str, left: Image.Image, right: Image.Image) -> Image.Image:
    pair = Image.new("RGB", (left.width + right.width + 2, TEXT + PANEL), "white")
    draw, font = ImageDraw.Draw(pair), ImageFont.load_default(12)
    for x, picture, method in ((0, left, PAIR[0]), (left.width + 2, right, PAIR[1])):
        pair.paste(picture, (x, TEXT))
        title = METHODS[method].title.replace("³", "3")  # Pillow's font has no such letter
        draw.text((x + 2, 1), f"{task}: {title}", "black", font)
    return pair


def _write_sheet(pairs: list[Image.Image], path: Path) -> None:
    gap, width = 8, max(pair.width for pair in pairs)
    height = TEXT + PANEL + gap
    sheet = Image.new("RGB", (2 * width + gap, -(-len(pairs) // 2) * height), "white")
    for place, pair in enumerate(pairs):
        sheet.paste(pair, (place % 2 * (width + gap), place // 2 * height))
    with rename_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")
