"""``e3va train``: fine-tune a model on the user's own images."""

import ast
import shlex
from argparse import SUPPRESS, ArgumentParser, Namespace
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from ..backbone import MEMORY
from ..highway.config import DEFAULT_RECIPE, RECIPES
from ..highway.registry import SETTINGS, adapter_kinds
from ..model_zoo.rows import SCHEMES
from ..report.page import write_report
from ..swin.precision import PRECISIONS as TRUNK_PRECISIONS
from ..torchvision import curves
from ..torchvision.description import why_no_adapter
from ..torchvision.models import DEMO_TRUNK, HEADS, MODELS, RANDOM, ModelConfig
from ..torchvision.options import DEFAULTS
from ..torchvision.report import REPORT, read_training
from ..torchvision.settings import TrainSettings
from ..torchvision.start import start_training
from ..torchvision.together import places_of, start_together, wants_together
from ..torchvision.trainer import MODEL, STATE, Trainer
from ..utils.errors import UserError
from ..utils.training import PRECISIONS
from .arguments import (
    ANY_TRUNK,
    MAX_DETECTIONS,
    READING,
    add_data,
    add_device,
    add_output,
    add_reading,
    pick_device,
    positive,
    split_share,
    whole,
)

DESCRIPTION = """\
Fine-tune a model on your own images.

Objects, from a COCO-format file. The model is Mask R-CNN if the file has masks, and Faster R-CNN if
it has only boxes:
  e3va train --images photos --annotations photos.json \\
             --val-images more --val-annotations more.json
Objects from a YOLO folder; its val split scores the model:
  e3va train --annotations yolo/data.yaml
Objects from Pascal VOC files; a tenth of the images scores the model and is not trained on:
  e3va train --images JPEGImages --annotations Annotations --val-split 0.1
Semantic segmentation, from label maps: photos/a.jpg has the label map labels/a.png, with a class
number in every pixel:
  e3va train --images photos --labels labels --classes background,road,car
Both at once, over one trunk, from images with objects and label maps; each gets its own folder:
  e3va train --images photos --annotations photos.json --labels labels

The default trunk comes with e3va; it is small and was trained on small photographs. For real
use give a larger pretrained Swin with --trunk: a name of "e3va zoo list", or a weights file of
the official repository, Detectron2, mmdetection, torchvision, timm or transformers.

Ctrl-C saves the run; the same command with --resume continues exactly where it stopped."""

# Defaults that depend on the data, the trunk or the device.
_DEFAULT_NOTES = {
    "preset": "those of the weights file",
    "model": "for masks mask_rcnn, for boxes faster_rcnn, for label maps semantic_fpn",
    "heads": "light for trunks smaller than Swin-T, else standard",
    "lr": ", ".join(f"{sizes.lr:g} for {name} heads" for name, sizes in HEADS.items()),
    "precision": "on a GPU bf16, on older ones fp16, else fp32",
}
_PIXELS = {"type": whole(32), "metavar": "PX"}


def _setting(field: Field) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a field of the settings."""
    text, least = field.metadata["help"], field.metadata["least"]
    if field.type is int:
        return {"help": text, "type": whole(least), "metavar": "N"}
    if field.type is float:
        return {"help": text, "type": positive, "metavar": "NUMBER"}
    return {"help": text, "choices": PRECISIONS}


# Arguments of ``add_argument`` for the options in ``DEFAULTS``.
_OPTIONS: dict[str, dict[str, Any]] = {
    "classes": {"metavar": "NAMES", "help": "class names for label maps, label 0 first: a,b,c"},
    "trunk": {
        "metavar": "FILE",
        "help": "pretrained weights: a file, a name of the zoo, hf://USER/NAME on the hub, "
        f"{DEMO_TRUNK!r} or {RANDOM!r}",
    },
    "adapter": {
        "metavar": "PATH",
        "help": "adapter to start from: its folder, e3va://NAME or hf://USER/NAME",
    },
    "preset": {"metavar": "NAME", "help": "size and window of the Swin, such as swin_t"},
    "model": {"choices": MODELS, "help": "kind of model"},
    "val_split": {
        "type": split_share,
        "metavar": "SHARE",
        "help": "share of the images to validate on, such as 0.1, if there are no other data",
    },
    "max_detections": MAX_DETECTIONS,
    "memory": {"choices": MEMORY, "help": "lean: less memory, more time; plain: for tests"},
    "trunk_precision": {"choices": TRUNK_PRECISIONS, "help": "data type of a frozen trunk"},
    "heads": {"choices": HEADS, "help": "widths of neck and heads"},
    "size": {**_PIXELS, "help": "shorter side of the resized images in pixels"},
    "max_size": {**_PIXELS, "help": "largest longer side of the resized images in pixels"},
    **{field.name: _setting(field) for field in fields(TrainSettings)},
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the subcommand, which sets ``run`` and ``interrupted``."""
    parser.set_defaults(run=run, interrupted=_interrupted)
    names = {*SETTINGS, *(name for kind in adapter_kinds().values() for name in kind.defaults)}
    parser.replaced = {f"--{name.replace('_', '-')}": f"--highway {name}=VALUE" for name in names}
    parser.replaced["--method"] = "--recipe NAME"
    # An option that is not given is absent, so that --resume compares only those that are given.
    absent = {"default": SUPPRESS}

    def add(group, *names: str) -> None:
        for name in names:
            option, default = dict(_OPTIONS[name]), _DEFAULT_NOTES.get(name, DEFAULTS[name])
            if default is not None:
                option["help"] += f" (default: {default})"
            group.add_argument(f"--{name.replace('_', '-')}", **option, **absent)

    data, output, model, training = map(
        parser.add_argument_group, ("data", "output", "model", "training")
    )
    add_data(data, "", "train on", **absent)
    add_data(data, "val-", "validate on", **absent)
    add(data, "val_split", "classes")
    add_reading(data, *READING, **absent)
    add_output(output, "output", "output folder")
    output.add_argument("--resume", action="store_true", help="continue the run in --output")
    output.add_argument("--tensorboard", action="store_true", help="also write TensorBoard's files")
    add(output, "eval_every", "checkpoint_every")
    add(model, "trunk", "adapter")
    model.add_argument("--any-trunk", action="store_true", help=ANY_TRUNK)
    add(model, "preset", "model")
    text = f"settings of the highway; frozen and full are baselines (default: {DEFAULT_RECIPE})"
    model.add_argument("--recipe", choices=RECIPES, help=text)
    text = f"adapters instead of the recipe's own: {', '.join(adapter_kinds())}"
    model.add_argument("--adapter-kind", metavar="NAME", help=text)
    model.add_argument(
        "--highway",
        nargs="+",
        default=(),
        metavar="NAME=VALUE",
        dest="highway_settings",
        help="changes to the recipe, such as rank=24 taps=residual",
    )
    add(model, "memory", "trunk_precision", "heads", "size", "max_size", "max_detections")
    add(training, "steps", "batch_size", "lr", "adapter_lr", "trunk_lr", "precision", "seed")
    text = "number of processes that read images (default: 4 with a GPU, else 0)"
    training.add_argument("--workers", type=whole(0), metavar="N", help=text)
    add_device(training)


def run(args: Namespace) -> None:
    """Train, and print the scores and the commands for the trained model."""
    given = {k: v for k, v in vars(args).items() if k in DEFAULTS}
    highway = _highway_settings(args)
    if highway:
        given["highway"] = highway
    folder = Path(args.output).expanduser()
    together = wants_together(given, folder, args.resume)
    start = start_together if together else start_training
    trainer = start(
        *(given, folder, pick_device(args.device)),
        resume=args.resume,
        any_trunk=args.any_trunk,
        workers=args.workers,
        tensorboard=args.tensorboard,
    )
    trainer.train()
    parts = {folder / name: part for name, part in trainer.trainers.items()} if together else {}
    for place, part in (parts or {folder: trainer}).items():
        curves.plot({"": curves.read_metrics(place)}, place / "curves.png")
        _report(place, part)
        if part.scores.values:
            print(f"{place.name}:\n{part.scores.table()}" if parts else part.scores.table())
    print("Next:")
    for words in _next_steps(list(parts) or [folder], next(iter(parts.values()), trainer).config):
        print(f"  {shlex.join(words)}")


def _next_steps(places: list[Path], config: ModelConfig) -> list[list[str]]:
    """Return the commands for the models in these folders."""
    models = [[str(place / MODEL)] for place in places]
    if len(places) > 1 and not why_no_adapter(config):  # adapters predict together
        models = [[str(place) for place in places]]
        if config.trunk != DEMO_TRUNK and not config.trunk.startswith(SCHEMES):
            models[0] += ["--trunk", config.trunk]
    predict = ["e3va", "predict"]
    steps = [[*predict, *own, "--input", "PHOTOS", "--output", "drawn"] for own in models]
    return steps + [["e3va", "info", str(place / MODEL)] for place in places]


def _report(folder: Path, trainer: Trainer) -> None:
    """Write the page on a training; the training has ended well even if there can be no page."""
    try:
        found = read_training(folder, trainer.device, trainer.scores.predictions)
        write_report(found, folder / REPORT)
    except UserError as error:
        print(f"no {REPORT}: {error.line}")
    else:
        print(f"wrote {folder / REPORT}: scores, curves and pictures, for a browser")


_WORDS = {"true": True, "false": False, "null": None}  # as in a config file


def _highway_settings(args: Namespace) -> dict[str, Any]:
    """Return the settings of ``--recipe``, ``--adapter-kind`` and ``--highway``."""
    first = {"recipe": args.recipe, "adapter": args.adapter_kind}
    settings: dict[str, Any] = {name: value for name, value in first.items() if value}
    for text in args.highway_settings:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UserError(f"--highway {text}: expected NAME=VALUE, such as rank=24")
        if name == "recipe" or name in settings:
            raise UserError(f"--highway {text}: expected each setting once, the recipe by --recipe")
        try:
            settings[name] = _WORDS[value] if value in _WORDS else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings


def _interrupted(args: Namespace) -> str:
    folder = Path(args.output).expanduser()
    if not any((place / STATE).is_file() for place in places_of(folder)):
        return " before anything was saved"
    return f": the run is saved; continue it with e3va train --output {folder} --resume"
