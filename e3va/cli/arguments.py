"""Arguments that several subcommands have, and their types."""

import argparse
import re
from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..model_zoo.rows import SCHEMES
from ..torchvision.models import MOST_DETECTIONS
from ..utils.errors import UserError, brief

ANY_TRUNK = "accept another trunk than that of the adapter's training"
Parser = ArgumentParser | _ArgumentGroup


def _number(kind: type, expected: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """Return an argparse type: a number for which ``holds`` is true."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            value = kind(text)
            if holds(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")

    return parse


def whole(least: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number of at least ``least``."""
    return _number(int, f"a whole number of at least {least}", lambda value: value >= least)


positive = _number(float, "a number above 0", lambda value: 0 < value < float("inf"))
share = _number(float, "a number from 0 to 1", lambda value: 0 <= value <= 1)
split_share = _number(float, "a number between 0 and 1", lambda value: 0 < value < 1)
detections = _number(
    int,
    f"a whole number from 1 to {MOST_DETECTIONS}",
    lambda value: 1 <= value <= MOST_DETECTIONS,
)
MAX_DETECTIONS = {
    "type": detections,
    "metavar": "N",
    "help": "largest number of objects that the model finds in an image",
}
# Options that say how annotations of instances are read.
READING = {
    "skip_missing": "leave out images that do not exist, instead of refusing the data",
    "use_crowds": "use objects with iscrowd 1 as ordinary objects",
    "keep_empty": "keep images without objects in the training data",
}


def add_model(parser: Parser, several: bool = False) -> None:
    """Add the trained model, or ``several`` of them, and the trunk of an adapter."""
    text = (
        "model.pth; or an adapter: its folder, e3va://NAME in the zoo, or hf://USER/NAME on the hub"
    )
    if several:
        text += "; or several adapters"
    parser.add_argument("model", metavar="MODEL", nargs="+" if several else None, help=text)
    add_trunk(parser, "pretrained weights for an adapter (default: those of its training)")


def add_trunk(parser: Parser, text: str) -> None:
    """Add ``--trunk`` with a help text, and ``--any-trunk``."""
    parser.add_argument("--trunk", metavar="FILE", help=text)
    parser.add_argument("--any-trunk", action="store_true", help=ANY_TRUNK)


def add_data(parser: Parser, prefix: str, purpose: str, **options: Any) -> None:
    """Add the folder of images, and the annotations or the folder of label maps."""
    for name, metavar, text in (
        ("images", "DIR", f"folder of the images to {purpose}"),
        (
            "annotations",
            "PATH",
            f"annotations to {purpose}: a COCO-format file, the data.yaml of YOLO, or a folder of "
            "Pascal VOC or labelme files",
        ),
        ("labels", "DIR", f"folder of label maps (PNG files) to {purpose}"),
    ):
        parser.add_argument(f"--{prefix}{name}", metavar=metavar, help=text, **options)


def add_output(parser: Parser, default: str, text: str) -> None:
    """Add ``--output`` for a folder."""
    text = f"{text} (default: %(default)s)"
    parser.add_argument("--output", default=default, metavar="DIR", help=text)


def add_device(parser: Parser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is a GPU)")


def pick_device(name: str | None) -> torch.device:
    """Return the device of a name; for None CUDA if there is a GPU, else the CPU."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {brief(error)}; expected cpu, cuda or cuda:N") from None
    return device


def add_reading(parser: Parser, *names: str, **options: Any) -> None:
    """Add flags of :data:`READING`."""
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, action="store_true", help=READING[name], **options)


def names_of(paths: list[str]) -> dict[str, str]:
    """Return adapters by the names of their folders.

    Raises:
        UserError: two have the same name, or one is no adapter.
    """
    named: dict[str, str] = {}
    for path in paths:
        if path.startswith(SCHEMES):
            place = Path(re.sub("@[^/]*", "", path))  # without a revision on the hub
        else:
            place = Path(path).expanduser().resolve()
        name = (place.parent if place.suffix in (".json", ".safetensors") else place).name
        if place.suffix in (".pth", ".onnx"):
            raise UserError(
                f"{path} is a whole model: several models predict together only as adapters over "
                "one trunk; give their folders, or predict with one model at a time"
            )
        if name in named:
            raise UserError(
                f"{named[name]} and {path} have the same name, {name!r}: give adapters whose "
                "folders have different names"
            )
        named[name] = path
    return named
