"""Arguments that several subcommands have, and their types."""

import argparse
from argparse import ArgumentParser, _ArgumentGroup
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

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


def add_model(parser: Parser) -> None:
    """Add the trained model and the trunk of an adapter."""
    text = "model.pth, the folder of an adapter, or e3va://NAME for an adapter of the zoo"
    parser.add_argument("model", metavar="MODEL", help=text)
    add_trunk(parser, "pretrained weights for an adapter (default: those of its training)")


def add_trunk(parser: Parser, text: str) -> None:
    """Add ``--trunk`` with a help text, and ``--any-trunk``."""
    parser.add_argument("--trunk", metavar="FILE", help=text)
    parser.add_argument("--any-trunk", action="store_true", help=ANY_TRUNK)


def add_data(parser: Parser, prefix: str, purpose: str, **options: Any) -> None:
    """Add the folder of images, and the annotation file or the folder of label maps."""
    for name, metavar, text in (
        ("images", "DIR", f"folder of the images to {purpose}"),
        ("annotations", "JSON", "COCO-format file with the annotations of the images"),
        ("labels", "DIR", "folder of label maps (PNG files), instead of a COCO-format file"),
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
