"""``e3va train``: fine-tune a model on the user's own images."""

import ast
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..backbone import MEMORY
from ..highway.config import DEFAULT_RECIPE, RECIPES
from ..swin.precision import PRECISIONS as TRUNK_PRECISIONS
from ..torchvision import curves
from ..torchvision.models import DEMO_TRUNK, HEADS, MODELS, RANDOM
from ..torchvision.start import (
    DATA,
    DEFAULTS,
    absolute_path,
    absolute_trunk,
    build_trainer,
    new_options,
    read_start,
    resumed_options,
)
from ..torchvision.trainer import MODEL, STATE, read_state
from ..utils.errors import UserError
from ..utils.training import PRECISIONS
from .arguments import ANY_TRUNK, add_data, add_device, pick_device, positive, whole

DESCRIPTION = """\
Fine-tune a model on your own images.

Instance segmentation, from a COCO-format file:
  e3va train --images photos --annotations photos.json \\
             --val-images more --val-annotations more.json
Semantic segmentation, from label maps: photos/a.jpg has the label map labels/a.png, with a class
number in every pixel:
  e3va train --images photos --labels labels --classes background,road,car

The default trunk comes with e3va; it is small and was trained only on drawn pictures. For real use
give a pretrained Swin with --trunk: a name of "e3va zoo list", or a weights file of the official
repository, Detectron2, mmdetection, torchvision, timm or transformers.

Ctrl-C saves the run; the same command with --resume continues exactly where it stopped."""

# The options that name files, and functions that return them for any working directory.
_PATHS = {**dict.fromkeys((*DATA, "adapter"), absolute_path), "trunk": absolute_trunk}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run`` and ``interrupted``."""
    parser.set_defaults(run=run, interrupted=_interrupted)
    # An option that is not given is absent, so that --resume compares only those that are given.
    absent = {"default": SUPPRESS}

    def add(group, flag: str, text: str, **options: Any) -> None:
        default = DEFAULTS[flag.strip("-").replace("-", "_")]
        note = "" if default is None else f"; default: {default}"
        group.add_argument(flag, help=text + note, **absent, **options)

    data = parser.add_argument_group("data")
    add_data(data, "", "train on", **absent)
    add_data(data, "val-", "validate on", **absent)
    add(data, "--classes", "class names for label maps, label 0 first: a,b,c", metavar="NAMES")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", default="output", metavar="DIR", help="output folder; default: %(default)s"
    )
    output.add_argument("--resume", action="store_true", help="continue the run in --output")
    output.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files")
    often = {"type": whole(0), "metavar": "N"}
    add(output, "--eval-every", "steps between evaluations; 0: only at the end", **often)
    add(output, "--checkpoint-every", "steps between checkpoints; 0: only at the end", **often)

    model = parser.add_argument_group("model")
    text = f"pretrained weights: a file, a name of the zoo, {DEMO_TRUNK!r} or {RANDOM!r}"
    add(model, "--trunk", text, metavar="FILE")
    text = "adapter to start from: its folder, or e3va://NAME"
    add(model, "--adapter", text, metavar="PATH")
    model.add_argument("--any-trunk", action="store_true", help=ANY_TRUNK)
    text = "size and window of the Swin, such as swin_t; default: those of the weights file"
    add(model, "--preset", text, metavar="NAME")
    text = "kind of model; default: mask_rcnn, for label maps semantic_fpn"
    add(model, "--model", text, choices=MODELS)
    model.add_argument(
        "--recipe",
        choices=RECIPES,
        help=f"the highway, or a baseline (frozen, full); default: {DEFAULT_RECIPE}",
    )
    model.add_argument(
        "--highway",
        nargs="+",
        metavar="NAME=VALUE",
        dest="highway_settings",
        help="changes to the recipe, such as rank=24 taps=residual",
    )
    add(model, "--memory", "lean: less memory, more computing; plain: for tests", choices=MEMORY)
    add(model, "--trunk-precision", "data type of a frozen trunk", choices=TRUNK_PRECISIONS)
    text = "widths of neck and heads; default: light for trunks smaller than Swin-T"
    add(model, "--heads", text, choices=HEADS)
    pixels = {"type": whole(32), "metavar": "PX"}
    add(model, "--size", "shorter side of the resized images in pixels", **pixels)
    add(model, "--max-size", "largest longer side of the resized images in pixels", **pixels)

    training = parser.add_argument_group("training")
    count = {"type": whole(1), "metavar": "N"}
    add(training, "--steps", "number of updates", **count)
    add(training, "--batch-size", "number of images in an update", **count)
    rates = ", ".join(f"{sizes.lr:g} for {name} heads" for name, sizes in HEADS.items())
    add(training, "--lr", f"learning rate of the heads; default: {rates}", type=positive)
    factor = {"type": positive, "metavar": "FACTOR"}
    add(training, "--adapter-lr", "learning rate of the adapters, as a multiple of --lr", **factor)
    text = "learning rate of a trunk that trains, as a multiple of --lr"
    add(training, "--trunk-lr", text, **factor)
    text = "fp32, or mixed precision; default: on a GPU bf16, on older ones fp16, else fp32"
    add(training, "--precision", text, choices=PRECISIONS)
    add(training, "--seed", "seed of everything random", type=whole(0), metavar="N")
    training.add_argument(
        "--workers",
        type=whole(0),
        metavar="N",
        help="number of processes that read images; default: 4 with a GPU, else 0",
    )
    add_device(training)


def run(args: Namespace) -> None:
    """Train, and print the scores and the commands to go on with."""
    given = {k: v for k, v in vars(args).items() if k in DEFAULTS}
    for key in given.keys() & _PATHS.keys():
        given[key] = _PATHS[key](given[key])
    highway = _highway_settings(args.recipe, args.highway_settings or ())
    if highway:
        given["highway"] = highway
    folder = Path(args.output).expanduser()
    state = start = None
    if args.resume:
        state = read_state(folder)
        options = resumed_options(given, state, folder)
    elif (folder / STATE).exists():
        raise UserError(
            f"{folder} already holds a run ({STATE}): add --resume to continue it, or give another "
            "--output"
        )
    else:
        if given.get("adapter"):
            start = read_start(given["adapter"], given.get("trunk"))
        options = new_options(given, start)
    trainer = build_trainer(
        options,
        folder,
        pick_device(args.device),
        state=state,
        start=start,
        any_trunk=args.any_trunk,
        workers=args.workers,
        tensorboard=args.tensorboard,
    )
    if state:
        print(f"continuing after step {trainer.step} of {trainer.settings.steps}")
    trainer.train()
    curves.plot({"": curves.read_metrics(folder)}, folder / "curves.png")
    if trainer.scores:
        print(trainer.scores.table())
    print(
        f"wrote {folder / MODEL}. Next:\n"
        f"  e3va predict {folder / MODEL} --input PHOTOS --output drawn\n"
        f"  e3va info {folder / MODEL}"
    )


def _highway_settings(recipe: str | None, texts: list[str]) -> dict[str, Any]:
    """Return the settings of ``--recipe`` and ``--highway``."""
    settings: dict[str, Any] = {"recipe": recipe} if recipe else {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UserError(f"--highway {text}: expected NAME=VALUE, such as rank=24")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings


def _interrupted(args: Namespace) -> str:
    folder = Path(args.output).expanduser()
    if not (folder / STATE).is_file():
        return " before anything was saved"
    return f": the run is saved; continue it with e3va train --output {folder} --resume"
