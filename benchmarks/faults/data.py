"""An image that is replaced, truncated or removed during a training."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .outcome import Campaign, Outcome
from .runs import PATIENCE, Forked, Training, complaint, draw_data

TRIES = 20


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Change an image after the first checkpoint."""
    source = draw_data(campaign.folder / "source")
    kinds, changes = campaign.frameworks, (_replace, _truncate, _remove)
    for number in campaign.tries(TRIES):
        framework = kinds[number % len(kinds)]
        change = changes[number // len(kinds) % len(changes)]
        what = f"an image is {change.__name__[1:]}d, {framework}"
        data = campaign.folder / "data"
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(source, data)
        training = Training(framework, data, campaign.folder / "out", steps=200).fresh()
        process = Forked(training.run, campaign.folder / "log")
        while process.wait(0.005) is None and not training.has_checkpoint():
            pass
        image = campaign.random.choice(sorted((data / "images").iterdir()))
        change(image)
        status = process.wait(PATIENCE)
        process.end()
        yield Outcome(what, _lost(training, status, process.said(), image))


def _lost(training: Training, status: int | None, said: str, image: Path) -> str:
    if status is None:
        return "it hangs"
    try:
        step = training.newest()
    except Exception as error:
        return f"damaged checkpoint: {error}"[:200]
    if not step:
        return "no checkpoint of the steps before"
    if status == 0:
        return "it trained to the end without a word"
    named = next((line for line in said.splitlines() if line.startswith("error: ")), "")
    if image.name not in named:
        return complaint(said) or f"the line does not name the image: {named[:160]}"
    return complaint(said)


def _replace(image: Path) -> None:
    Image.new("RGB", (17, 23)).save(image)


def _truncate(image: Path) -> None:
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])


def _remove(image: Path) -> None:
    image.unlink()
