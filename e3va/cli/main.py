"""The ``e3va`` command."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ..utils.command import run_command

DESCRIPTION = """\
Fine-tune a Swin backbone for instance or semantic segmentation, with little memory: adapters train
beside the frozen backbone."""

# Each subcommand is the module of its name in this package.
COMMANDS = {
    "check": "look at your data before training: counts, problems, a contact sheet",
    "train": "fine-tune a model on your own images",
    "eval": "score a trained model: box and mask AP, or mIoU",
    "report": "write a page on a training: scores, curves, the worst and best images",
    "compare": "write a page on several trainings side by side",
    "predict": "draw the predictions of a trained model",
    "serve": "predict over HTTP, with several adapters over one trunk",
    "info": "describe a trained model, an adapter or a weights file",
    "export": "write a trained model as an ONNX file, or as a program of torch.export",
    "convert": "convert a whole model to its adapter, or back",
    "zoo": "list, download and publish trunks and adapters",
}


class Parser(argparse.ArgumentParser):
    """Parser that prints one line and the way to the help after wrong usage.

    ``replaced`` has advice for options that the parser lacks, such as those of earlier versions.
    """

    replaced: Mapping[str, str] = {}

    def parse_known_args(self, args=None, namespace=None):
        """Refuse unknown arguments here, so that the error is that of the subcommand."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            advice = self.replaced.get(unknown[0].partition("=")[0])
            hint = f"; use {advice}" if advice else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        self.exit(2, f"error: {message}\nsee {self.prog} --help\n")


def build_parser(only: str | None = None) -> Parser:
    """Build the parser of the command line.

    Args:
        only: the subcommand to import; the others then have no arguments. None for all.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "e3va",
        description=DESCRIPTION,
        epilog="e3va COMMAND --help describes a command.",
        formatter_class=raw,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        own = subparsers.add_parser(name, help=text, formatter_class=raw)
        if only in (None, name):
            module = importlib.import_module(f".{name}", __package__)
            own.description = module.DESCRIPTION
            if name == "zoo":
                module.add_commands(own.add_subparsers(required=True, metavar="COMMAND"))
            else:
                module.add_arguments(own)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        the exit status: 0; 1 after a user's mistake, with one line on stderr; 130 after Ctrl-C.
        Wrong usage raises ``SystemExit`` with status 2.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    args = argparse.Namespace(interrupted=lambda _: "")

    def work(args: argparse.Namespace) -> int | None:
        # Only the module of the subcommand is imported, so that --help answers at once.
        build_parser(arguments[0] if arguments else "").parse_args(arguments, args)
        return args.run(args)

    return run_command(work, args, lambda: args.interrupted(args))


if __name__ == "__main__":
    sys.exit(main())
