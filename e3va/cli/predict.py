"""``e3va predict``: draw the predictions of a trained model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..torchvision.loading import load_model
from ..torchvision.models import limit_detections
from ..torchvision.predict import predict_images
from ..utils.errors import UserError
from ..utils.paths import find_images
from .arguments import MAX_DETECTIONS, add_device, add_model, add_output, pick_device, share

DESCRIPTION = """\
Draw the predictions of a trained model, and write them for other programs: instances as a
COCO-format file, label maps as PNG files."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser)
    text = "image files, folders of images, or globs such as 'photos/*.jpg'"
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=text)
    add_output(parser, "predictions", "output folder")
    text = "smallest score of an object, from 0 to 1 (default: %(default)s)"
    parser.add_argument("--threshold", type=share, default=0.5, metavar="SCORE", help=text)
    parser.add_argument("--max-detections", **MAX_DETECTIONS)
    add_device(parser)


def run(args: Namespace) -> None:
    """Predict; raise a UserError at the end if an image could not be read."""
    images = find_images(args.input)
    device = pick_device(args.device)
    model, config = load_model(args.model, device, args.trunk, args.any_trunk)
    if args.max_detections:
        limit_detections(model, args.max_detections)
    folder = Path(args.output).expanduser()
    failed = predict_images(model, config, images, folder, args.threshold)
    print(f"{len(images) - len(failed)} of {len(images)} images drawn into {folder}")
    if failed:
        raise UserError(failed[0] + (f" (and {len(failed) - 1} more)" if failed[1:] else ""))
