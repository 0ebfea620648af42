"""``e3va convert``: a whole model to its adapter, or an adapter to the whole model."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..adapter_files.files import (
    CONFIG_FILE,
    MODEL_FILE,
    backbone_part,
    is_adapter,
    read_adapter,
    write_adapter,
)
from ..torchvision.convert import to_adapter, to_checkpoint
from ..torchvision.loading import find_saved
from ..utils.atomic import make_folder, save_atomically
from ..utils.errors import UserError
from ..utils.measure import MIB
from ..weights.checkpoint import load_file
from .arguments import add_trunk

DESCRIPTION = """\
Convert a whole model to its adapter, or an adapter to the whole model.

A whole model (model.pth, training.pth, a checkpoint of Detectron2) becomes an adapter's folder:
  e3va convert output/model.pth --output fruit
An adapter becomes a whole model, in the format of its framework:
  e3va convert fruit --output model.pth --trunk swin_tiny_patch4_window7_224.pth
All tensors are the same to the bit, either way."""

_READERS = {"torchvision": "e3va", "detectron2": "Detectron2"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run``."""
    parser.set_defaults(run=run)
    text = "model.pth, the folder of an adapter, e3va://NAME or hf://USER/NAME"
    parser.add_argument("input", metavar="INPUT", help=text)
    text = "folder for the adapter, or file for the whole model"
    parser.add_argument("--output", required=True, metavar="PATH", help=text)
    add_trunk(parser, "pretrained weights (default: those of the training, if they are found)")
    text = "write only the highway, a few megabytes, as a start for other tasks"
    parser.add_argument("--backbone-only", action="store_true", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def run(args: Namespace) -> None:
    """Convert, and print what was written."""
    path, output = find_saved(args.input), Path(args.output).expanduser()
    is_whole = not (path.is_dir() or is_adapter(path))
    if is_whole or args.backbone_only:
        _write_adapter(path, is_whole, output, args)
    else:
        _write_whole(path, output, args)


def _write_adapter(path: Path, is_whole: bool, output: Path, args: Namespace) -> None:
    data = load_file(path) if is_whole else {}
    state, config = to_adapter(data, str(path), args.trunk) if is_whole else read_adapter(path)
    part = "the model without its trunk"
    if output.is_file():
        raise UserError(f"--output {output} is a file: expected a folder for the adapter's files")
    files = (output / MODEL_FILE, output / CONFIG_FILE)
    _check_free(output, files, args.force)
    if args.backbone_only:
        (state, config), part = backbone_part(state, config), "the highway"
    before = _size(*((path / MODEL_FILE, path / CONFIG_FILE) if path.is_dir() else (path,)))
    write_adapter(state, config, make_folder(output))
    print(
        f"wrote {output} ({_size(*files)} instead of {before}): {part}, for the trunk "
        f"{config.trunk.source} (fingerprint {config.trunk.short})"
    )
    if "optimizer" in data:
        print("the optimizer's state is not in the adapter: keep the file to resume the training")


def _write_whole(path: Path, output: Path, args: Namespace) -> None:
    if output.suffix not in (".pth", ".pt") or output.is_dir():
        raise UserError(f"--output {output}: expected the name of a file, such as model.pth")
    _check_free(output, (output,), args.force)
    data, config = to_checkpoint(path, args.trunk, args.any_trunk)
    make_folder(output.parent)
    save_atomically(data, output)
    reader = _READERS.get(config.framework, "torch.load")
    print(f"wrote {output} ({_size(output)}): the whole model, for {reader}")


def _check_free(output: Path, files: tuple[Path, ...], force: bool) -> None:
    if not force and any(file.exists() for file in files):
        raise UserError(f"--output {output} exists already: add --force to overwrite it")


def _size(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / MIB:.1f} MiB"
