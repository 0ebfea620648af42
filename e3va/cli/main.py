"""The ``e3va`` command: what can be asked for, and how mistakes are said."""

import argparse
import sys
from collections.abc import Sequence

from ..backbone import MEMORY
from ..highway.config import DEFAULT_RECIPE, RECIPES
from ..swin.precision import PRECISIONS as TRUNK_PRECISIONS
from ..torchvision.models import DEMO_TRUNK, HEADS, MODELS
from ..torchvision.settings import PRECISIONS
from ..utils.command import run_command
from . import check as data_cli
from . import commands, convert, info
from . import zoo as zoo_cli

DESCRIPTION = """\
Fine-tune a Swin backbone for instance or semantic segmentation along an adapter highway: the
frozen trunk runs forward alone, so a step needs little memory.

  e3va check    look at data first: counts, problems, a contact sheet
  e3va train    on your own images, with COCO-format annotations or label maps
  e3va eval     score a trained model: box and mask AP, or mIoU
  e3va predict  draw what a trained model finds, and write it as COCO-format JSON or label maps
  e3va info     say what a model, adapter or weights file contains
  e3va convert  a whole model to its adapter, all but the trunk, or back
  e3va zoo      list, download and publish trunks and adapters

Each has its own --help."""

TRAIN_HELP = """\
Instance masks, from a COCO-format file:
  e3va train --images photos --annotations photos.json \\
             --val-images more --val-annotations more.json
Label maps, for photos/a.jpg the file labels/a.png with a class number in every pixel:
  e3va train --images photos --labels labels --classes background,road,car

The trunk that comes with e3va is small and has seen drawn pictures alone. For real use give a
pretrained Swin: one of "e3va zoo list" by its name, or a file of the official repository,
Detectron2, mmdetection, torchvision, timm or transformers, with --trunk.
Ctrl-C saves; the same command with --resume goes on exactly where it stopped."""

CONVERT_HELP = """\
A whole model (model.pth, training.pth, a Detectron2 checkpoint) becomes an adapter's folder:
  e3va convert output/model.pth --output fruit
An adapter becomes the whole model, in the format of the framework that it is of:
  e3va convert fruit --output model.pth --trunk swin_tiny_patch4_window7_224.pth
All tensors are the same to the bit, either way."""


def whole(least: int):
    """An argparse type: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: expected at least {least}")
        return value

    parse.__name__ = "whole number"
    return parse


def positive(text: str) -> float:
    """An argparse type: a number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def share(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("e3va", description=DESCRIPTION, formatter_class=raw)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, help_text: str, **options) -> argparse.ArgumentParser:
        own = subparsers.add_parser(name, help=help_text, formatter_class=raw, **options)
        own.set_defaults(run=run)
        return own

    look = add("check", None, "look at data before training", description=data_cli.DESCRIPTION)
    data_cli.add_arguments(look)

    train = add("train", commands.train, "fine-tune on your own images", description=TRAIN_HELP)
    _add_train_options(train)

    evaluate = add("eval", commands.evaluate_model, "score a trained model")
    _add_model(evaluate)
    _add_data(evaluate, "", "to score on")
    evaluate.add_argument("--output", metavar="FILE", help="write the scores here too, as JSON")
    _add_device(evaluate)

    predict = add("predict", commands.predict, "draw what a trained model finds")
    _add_model(predict)
    predict.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images, folders, 'globs/*.jpg'"
    )
    predict.add_argument(
        "--output", default="predictions", metavar="DIR", help="default: %(default)s"
    )
    predict.add_argument(
        "--threshold", type=share, default=0.5, help="least score of an object; default: 0.5"
    )
    _add_device(predict)

    about = add("info", info.info, "say what a model, adapter or weights file contains")
    about.add_argument(
        "file", help="model.pth, training.pth, an adapter's folder, or pretrained Swin weights"
    )
    _add_trunk(about, "compare with the trunk that an adapter was trained on")

    change = add(
        "convert", convert.convert, "whole model to adapter, or back", description=CONVERT_HELP
    )
    change.add_argument("input", metavar="INPUT", help="model.pth, or an adapter's folder")
    change.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="adapter's folder, or the whole model's file",
    )
    _add_trunk(change, "the pretrained weights; default: those that INPUT names")
    change.add_argument(
        "--backbone-only",
        action="store_true",
        help="an adapter of the highway alone, a few megabytes, to begin other tasks from",
    )
    change.add_argument("--force", action="store_true", help="overwrite what is there")

    zoo = add(
        "zoo", None, "pretrained trunks and published adapters", description=zoo_cli.DESCRIPTION
    )
    zoo_cli.add_commands(zoo.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def _add_model(parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="model.pth, an adapter's folder, or e3va://NAME of the zoo"
    )
    _add_trunk(parser, "of an adapter; default: the one that it was trained on, if it is found")


def _add_trunk(parser, purpose: str) -> None:
    parser.add_argument("--trunk", metavar="FILE", help=purpose)
    parser.add_argument(
        "--any-trunk", action="store_true", help="accept another trunk than the adapter's"
    )


def _add_data(parser, prefix: str, purpose: str, **options) -> None:
    parser.add_argument(
        f"--{prefix}images", metavar="DIR", help=f"folder of the images {purpose}", **options
    )
    parser.add_argument(
        f"--{prefix}annotations", metavar="JSON", help="their COCO-format file, or", **options
    )
    parser.add_argument(
        f"--{prefix}labels", metavar="DIR", help="folder of their label maps (PNG)", **options
    )


def _add_device(parser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: cuda where there is one")


def _add_train_options(parser: argparse.ArgumentParser) -> None:
    # What is not given is absent, so that --resume can tell it from what is given.
    absent = {"default": argparse.SUPPRESS}
    standard = commands.TRAIN_DEFAULTS

    def add(group, flag: str, text: str, **options) -> None:
        default = standard[flag.strip("-").replace("-", "_")]
        note = "" if default is None else f"; default: {default}"
        group.add_argument(flag, help=text + note, **absent, **options)

    data = parser.add_argument_group("data")
    _add_data(data, "", "to train on", **absent)
    _add_data(data, "val-", "to validate on", **absent)
    add(data, "--classes", "names for label maps, label 0 first, by commas", metavar="NAMES")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="output", metavar="DIR", help="default: %(default)s")
    out.add_argument("--resume", action="store_true", help="go on with the run in --output")
    out.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files too")
    add(out, "--eval-every", "steps; 0: at the end alone", type=whole(0), metavar="N")
    add(out, "--checkpoint-every", "steps; 0: at the end alone", type=whole(0), metavar="N")

    model = parser.add_argument_group("model")
    add(
        model,
        "--trunk",
        f"weights: a file, a name of the zoo, {DEMO_TRUNK!r}, or 'random'",
        metavar="FILE",
    )
    add(model, "--adapter", "start from this adapter's backbone part", metavar="PATH")
    model.add_argument(
        "--any-trunk", action="store_true", help="though --trunk is not the adapter's own"
    )
    text = "size and window, as swin_t; default: as the weights file"
    add(model, "--preset", text, metavar="NAME")
    add(model, "--model", "default: mask_rcnn, or semantic_fpn for label maps", choices=MODELS)
    model.add_argument(
        "--recipe",
        choices=RECIPES,
        help=f"what trains in the backbone; default: {DEFAULT_RECIPE}",
    )
    model.add_argument(
        "--highway",
        nargs="+",
        metavar="NAME=VALUE",
        dest="highway_settings",
        help="changes to the recipe, such as rank=24, taps=residual, adapter=dual_low_rank",
    )
    add(model, "--memory", "lean: keep less, compute more", choices=MEMORY)
    add(model, "--trunk-precision", "of a frozen trunk", choices=TRUNK_PRECISIONS)
    add(model, "--heads", "widths; default: light for trunks below Swin-T", choices=HEADS)
    add(model, "--size", "shorter side of the images, pixels", type=whole(32), metavar="PX")
    add(model, "--max-size", "longer side at most", type=whole(32), metavar="PX")

    how = parser.add_argument_group("training")
    add(how, "--steps", "updates", type=whole(1), metavar="N")
    add(how, "--batch-size", "images in an update", type=whole(1), metavar="N")
    rates = ", ".join(f"{sizes.lr:g} for {name} heads" for name, sizes in HEADS.items())
    add(how, "--lr", f"learning rate of the heads; default: {rates}", type=positive)
    add(how, "--adapter-lr", "multiple of --lr for adapters", type=positive, metavar="FACTOR")
    add(how, "--trunk-lr", "multiple for a trained trunk", type=positive, metavar="FACTOR")
    add(how, "--precision", "default: fp32; on CUDA bf16, or fp16", choices=PRECISIONS)
    add(how, "--seed", "of everything random", type=whole(0), metavar="N")
    how.add_argument(
        "--workers", type=whole(0), metavar="N", help="processes that read images; default: auto"
    )
    _add_device(how)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0; 1 after a user's mistake, said in one line on stderr; 2 for wrong usage (raised by argparse
    as ``SystemExit``); 130 after Ctrl-C.
    """
    args = build_parser().parse_args(arguments)
    return run_command(args.run, args, lambda: commands.how_to_go_on(args))


if __name__ == "__main__":
    sys.exit(main())
