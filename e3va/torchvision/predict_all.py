"""Predictions of several adapters over one trunk, from one pass of it where they agree."""

import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..adapter_files.adapter_set import AdapterSet
from ..utils.atomic import make_folder
from ..utils.errors import UserError
from .predict import Outcome, Results, write_png
from .predictor import Photo, PredictOptions, Predictor, for_each_image
from .tiles import Found

TOGETHER = "together"  # folder of the pictures with the results of all adapters
CAPTION, GAP, TEXT = 26, 6, 16  # pixels
TALLEST = 720  # pixels of a picture among the others


def predict_tasks(
    models: AdapterSet,
    images: list[Path],
    folder: Path,
    threshold: float,
    options: PredictOptions = PredictOptions(),  # noqa: B008
) -> list[str]:
    """Predict with all adapters, and write the results of each and all of them side by side.

    ``folder/NAME`` has the :class:`e3va.torchvision.predict.Results` of each adapter, and
    ``folder/together`` a picture of all results for each image. See
    :func:`e3va.torchvision.predict.predict_images` for the arguments.

    Returns:
        One line for each image that is unreadable.

    Raises:
        UserError: an adapter has the name of the folder of all results.
    """
    if TOGETHER in models.names:
        raise UserError(
            f"an adapter's folder is called {TOGETHER!r}, as the folder of the results of all "
            "adapters: rename it"
        )
    tasks = {name: models.set_adapter(name) for name in models.names}
    results = {
        name: Results(model.config, folder / name, threshold) for name, model in tasks.items()
    }
    together, plans, lock = folder / TOGETHER, [], threading.Lock()

    def tell(readers: list[list[str]]) -> None:
        with lock:
            if readers not in plans:
                plans.append(readers)
                print(plan_text(readers))

    def write(photo: Photo, found: dict[str, Found]) -> dict[str, Outcome]:
        written = {name: results[name].write(photo, own) for name, own in found.items()}
        pictures = {name: picture for name, (picture, _) in written.items()}
        make_folder(together)
        write_png(side_by_side(pictures), together / photo.name)
        return {name: outcome for name, (_, outcome) in written.items()}

    def add(outcomes: dict[str, Outcome]) -> str:
        return ", ".join(f"{name}: {results[name].add(own)}" for name, own in outcomes.items())

    predictor = Predictor(tasks, threshold, options, models.trunk, tell)
    failed = for_each_image(images, together, predictor, write, add)
    for own in results.values():
        own.finish()
    return failed


def plan_text(readers: list[list[str]]) -> str:
    """Return a line that says which adapters share a pass of the trunk."""
    count = sum(map(len, readers))
    groups = "; ".join(", ".join(group) for group in readers)
    passes = "1 pass" if len(readers) == 1 else f"{len(readers)} passes"
    return f"{passes} of the trunk for {count} adapters: {groups}"


def side_by_side(pictures: Mapping[str, Tensor]) -> Tensor:
    """Return pictures [3, H, W] uint8 of any sizes beside each other, with their names above."""
    height = min(TALLEST, max(picture.shape[1] for picture in pictures.values()))
    tiles = []
    for picture in pictures.values():
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy())
        width = max(1, round(tile.width * height / tile.height))
        tiles.append(tile.resize((width, height), Image.Resampling.BILINEAR))
    total = sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1)
    sheet = Image.new("RGB", (total, height + CAPTION), "white")
    draw, font, left = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT), 0
    for name, tile in zip(pictures, tiles, strict=True):
        sheet.paste(tile, (left, CAPTION))
        draw.text((left + 2, 3), name, "black", font)
        left += tile.width + GAP
    flat = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return flat.view(sheet.height, sheet.width, 3).permute(2, 0, 1)
