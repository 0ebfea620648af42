"""``e3va eval``: score a trained model."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..torchvision.data import check_classes, open_dataset
from ..torchvision.evaluate import evaluate
from ..torchvision.loading import load_model
from ..torchvision.start import DATA_OF_MODEL
from ..utils.atomic import atomic_open, make_folder
from ..utils.errors import UserError
from .arguments import add_data, add_device, add_model, pick_device

DESCRIPTION = "Score a trained model: box and mask AP for instances, mIoU for label maps."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser)
    add_data(parser, "", "evaluate on")
    parser.add_argument("--output", metavar="FILE", help="file for the scores, as JSON")
    add_device(parser)


def run(args: Namespace) -> None:
    """Print the scores, and write them into a file if one is given."""
    output = Path(args.output).expanduser() if args.output else None
    if output:
        if output.is_dir():
            raise UserError(f"--output {output} is a folder: expected the name of a file")
        make_folder(output.parent)
    device = pick_device(args.device)
    model, config = load_model(args.model, device, args.trunk, args.any_trunk)
    semantic = config.model == "semantic_fpn"
    if args.annotations if semantic else args.labels:
        raise UserError(f"{args.model} {DATA_OF_MODEL[semantic]}")
    names = config.classes if semantic else ()
    dataset = open_dataset(args.images, args.annotations, args.labels, classes=names, prefix="--")
    print(dataset.summary)
    check_classes(dataset, config.classes)
    scores = evaluate(model, dataset, device)
    print(scores.table())
    if output:
        with atomic_open(output, "w") as file:
            json.dump({"scores": scores.values, "per_class": scores.per_class}, file, indent=1)
