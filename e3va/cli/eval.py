"""``e3va eval``: score a trained model."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..data.coco import ReadOptions
from ..data.formats import scored_split
from ..torchvision.data import check_classes, open_dataset
from ..torchvision.evaluate import evaluate
from ..torchvision.loading import load_model
from ..torchvision.models import MASK_MODELS, limit_detections
from ..torchvision.options import DATA_OF_MODEL
from ..torchvision.training_data import crowded_note
from ..utils.atomic import atomic_open, make_folder
from ..utils.errors import UserError
from .arguments import (
    MAX_DETECTIONS,
    add_data,
    add_device,
    add_model,
    add_reading,
    pick_device,
)

DESCRIPTION = "Score a trained model: box and mask AP for objects, mIoU for label maps."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser)
    add_data(parser, "", "evaluate on")
    add_reading(parser, "skip_missing", "use_crowds")
    parser.add_argument("--max-detections", **MAX_DETECTIONS)
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
    split = scored_split(args.annotations) if args.annotations else "val"
    if split != "val":
        print(f"{args.annotations} names no val images: its {split} images are scored")
    dataset = open_dataset(
        *(args.images, args.annotations, args.labels),
        classes=config.classes if semantic else (),
        options=ReadOptions(
            masks=None if config.model in MASK_MODELS else False,
            skip_missing=args.skip_missing,
            use_crowds=args.use_crowds,
            classes=config.classes,
        ),
        split=split,
        prefix="--",
    )
    print(dataset.summary)
    check_classes(dataset, config.classes)
    if config.model in MASK_MODELS and not dataset.coco.masks:
        print("the annotations are boxes without masks: only boxes are scored")
    limit = args.max_detections or config.detections
    limit_detections(model, limit)
    crowded = crowded_note([dataset], limit)
    if crowded:
        print(crowded)
    scores = evaluate(model, dataset, device)
    print(scores.table())
    if output:
        with atomic_open(output, "w") as file:
            json.dump(scores.to_json(), file, indent=1, allow_nan=False)
