"""``e3va info``: describe a file."""

from argparse import ArgumentParser, Namespace

from ..torchvision.info import describe_file
from .arguments import add_trunk

DESCRIPTION = "Describe a trained model, an adapter, or a file of pretrained Swin weights."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    parser.add_argument(
        "file",
        metavar="FILE",
        help="model.pth, the folder of an adapter, an address (e3va://NAME, hf://USER/NAME), or "
        "pretrained weights",
    )
    add_trunk(parser, "weights to compare with the trunk of an adapter's training")


def run(args: Namespace) -> None:
    """Print the description."""
    print("\n".join(describe_file(args.file, args.trunk, args.any_trunk)))
