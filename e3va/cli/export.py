"""``e3va export``: a trained model as an ONNX file, or as a program of torch.export."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from ..torchvision.export import (
    FORMATS,
    OPSET,
    OPSETS,
    WEIGHTS,
    ExportableBackbone,
    ExportableModel,
    describe,
    to_program,
    write_program,
)
from ..torchvision.loading import load_model
from ..torchvision.models import limit_detections
from ..utils.atomic import make_folder
from ..utils.errors import UserError
from ..utils.measure import MIB
from ..utils.optional import require
from .arguments import MAX_DETECTIONS, add_model

DESCRIPTION = """\
Write a trained model as one file that runs without this package: an ONNX file, or a program of
torch.export. It takes images of any size.

  e3va export output/model.pth --output model.onnx
  e3va predict model.onnx --input photos

The file has the classes, and how images are resized and normalized, in its metadata."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    add_model(parser)
    text = "the file: NAME.onnx, or NAME.pt2 for a program of torch.export"
    parser.add_argument("--output", required=True, metavar="FILE", help=text)
    text = "form in which the trunk's matrices are stored (default: %(default)s)"
    parser.add_argument("--weights", choices=WEIGHTS, default="fp32", help=text)
    text = "version of ONNX's operators (default: %(default)s)"
    parser.add_argument("--opset", type=int, choices=OPSETS, default=OPSET, help=text)
    text = "export only the backbone: images to the levels of its pyramid"
    parser.add_argument("--backbone-only", action="store_true", help=text)
    parser.add_argument("--max-detections", **MAX_DETECTIONS)
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")


def run(args: Namespace) -> None:
    """Export, and print what was written."""
    output = Path(args.output).expanduser()
    if output.suffix not in FORMATS.values() or output.is_dir():
        raise UserError(f"--output {output}: expected the name of a file, NAME.onnx or NAME.pt2")
    if output.exists() and not args.force:
        raise UserError(f"--output {output} exists already: add --force to overwrite it")
    if output.suffix == FORMATS["onnx"]:
        for package in ("onnx", "onnxscript"):
            require(package, "e3va export")
    model, config = load_model(args.model, trunk=args.trunk, any_trunk=args.any_trunk)
    make_folder(output.parent)  # a wrong one is refused before the export, which takes minutes
    if args.max_detections:
        limit_detections(model, args.max_detections)
        config = replace(config, detections=args.max_detections)
    if args.backbone_only:
        exported = ExportableBackbone(model.backbone.bottom_up, args.weights)
    else:
        exported = ExportableModel(model, args.weights)
    print("exporting: this takes a minute or more", flush=True)
    description = describe(config, args.weights, args.backbone_only)
    write_program(to_program(exported), exported.outputs, description, output, args.opset)
    print(
        f"wrote {output} ({output.stat().st_size / MIB:.1f} MiB): images [B, 3, H, W] to "
        f"{', '.join(exported.outputs)}"
    )
