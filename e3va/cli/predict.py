"""``e3va predict``: draw the predictions of a trained model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..swin.precision import DTYPES
from ..torchvision.exported import is_exported, load_onnx
from ..torchvision.loading import load_adapters, load_model
from ..torchvision.models import limit_detections
from ..torchvision.predict import predict_images
from ..torchvision.predict_all import predict_tasks
from ..torchvision.predictor import PredictOptions
from ..torchvision.tiles import Tiling
from ..utils.errors import UserError
from ..utils.paths import find_images
from .arguments import (
    MAX_DETECTIONS,
    add_device,
    add_model,
    add_output,
    names_of,
    pick_device,
    share,
    whole,
)

DESCRIPTION = """\
Draw the predictions of a trained model, and write them for other programs: instances as a
COCO-format file, label maps as PNG files. The model may also be an ONNX file of e3va export.

Several adapters over one trunk predict together: each image passes the trunk once for all adapters
that resize it in the same way.

  e3va predict output/fruit output/leaves --input photos

writes predictions/fruit, predictions/leaves, and predictions/together with all of them in one
picture.

Large images are cut into tiles that overlap, and their results are merged:

  e3va predict output/model.pth --input map.tif --tile 1024 --overlap 128"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser, several=True)
    text = "image files, folders of images, or globs such as 'photos/*.jpg'"
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help=text)
    add_output(parser, "predictions", "output folder")
    text = "smallest score of an object, from 0 to 1 (default: %(default)s)"
    parser.add_argument("--threshold", type=share, default=0.5, metavar="SCORE", help=text)
    parser.add_argument("--max-detections", **MAX_DETECTIONS)
    text = "height and width of the tiles into which larger images are cut, in pixels"
    parser.add_argument("--tile", type=whole(1), metavar="N", help=text)
    text = "least number of pixels that neighbouring tiles share (default: an eighth of --tile)"
    parser.add_argument("--overlap", type=whole(0), metavar="N", help=text)
    text = "images of equal size, or tiles, in one call of the model (default: %(default)s)"
    parser.add_argument("--batch-size", type=whole(1), default=1, metavar="N", help=text)
    text = "bf16 or fp16 for mixed precision (default: %(default)s)"
    parser.add_argument("--precision", choices=DTYPES, default="fp32", help=text)
    add_device(parser)


def run(args: Namespace) -> None:
    """Predict; raise a UserError at the end if an image could not be read."""
    options = PredictOptions(args.batch_size, args.precision, _tiling(args))
    device, folder = pick_device(args.device), Path(args.output).expanduser()
    images = find_images(args.input)
    exported = len(args.model) == 1 and is_exported(args.model[0])
    if exported:
        _check_exported(args)
        model, config = load_onnx(args.model[0], args.max_detections)
        models = []
    elif len(args.model) == 1:
        model, config = load_model(args.model[0], device, args.trunk, args.any_trunk)
        models = [model]
    else:
        paths = names_of(args.model)
        adapters = load_adapters(paths, args.trunk, device, args.any_trunk)
        models = [adapters.set_adapter(name) for name in paths]
    for model in models if args.max_detections else ():
        limit_detections(model, args.max_detections)
    if len(args.model) == 1:
        failed = predict_images(model, config, images, folder, args.threshold, options)
    else:
        failed = predict_tasks(adapters, images, folder, args.threshold, options)
    print(f"{len(images) - len(failed)} of {len(images)} images drawn into {folder}")
    if failed:
        raise UserError(failed[0] + (f" (and {len(failed) - 1} more)" if failed[1:] else ""))


def _tiling(args: Namespace) -> Tiling | None:
    if args.tile:
        return Tiling(args.tile, args.overlap)
    if args.overlap is not None:
        raise UserError(f"--overlap {args.overlap} without --tile: expected the size of the tiles")
    return None


def _check_exported(args: Namespace) -> None:
    if args.trunk:
        raise UserError(f"{args.model[0]} is a whole model with its trunk: --trunk is for adapters")
    if args.precision != "fp32":
        raise UserError(
            f"--precision {args.precision}: {args.model[0]} computes as it was exported; expected "
            "no --precision"
        )
    if args.device not in (None, "cpu"):
        raise UserError(
            f"--device {args.device}: {args.model[0]} runs on the CPU; expected no --device"
        )
