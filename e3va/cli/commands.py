"""What the ``e3va`` command does."""

import ast
import json
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..highway.config import highway_config
from ..torchvision import curves
from ..torchvision.data import Dataset, coco_dataset, label_dataset
from ..torchvision.evaluate import evaluate
from ..torchvision.loading import load_model
from ..torchvision.models import DEMO_TRUNK, HEADS, ModelConfig, build_model
from ..torchvision.predict import predict_images
from ..torchvision.settings import TrainSettings
from ..torchvision.start import (
    WANTS,
    Start,
    load_start,
    model_config,
    read_start,
    saved_option,
    trunk_option,
)
from ..torchvision.trainer import MODEL, STATE, Trainer, make_folder, read_state
from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from ..utils.optional import require
from ..utils.paths import find_images

_SETTINGS = {f.name: f.default for f in fields(TrainSettings)}
_CONFIG = {f.name: f.default for f in fields(ModelConfig)}
# The options of "e3va train" that make a run what it is, with their defaults (None: see --help).
TRAIN_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("images", "annotations", "labels")),
    **dict.fromkeys(("val_images", "val_annotations", "val_labels", "classes")),
    "trunk": DEMO_TRUNK,
    "adapter": None,
    "preset": None,
    "model": None,
    "heads": None,
    "precision": None,
    "lr": None,
    "highway": None,
    **{k: _CONFIG[k] for k in ("memory", "trunk_precision", "size", "max_size")},
    **{k: _SETTINGS[k] for k in ("steps", "batch_size", "adapter_lr", "trunk_lr", "seed")},
    **{k: _SETTINGS[k] for k in ("eval_every", "checkpoint_every")},
}
_DATA = ("images", "annotations", "labels", "val_images", "val_annotations", "val_labels")
# How the options that name files are written so that they mean the same in any folder.
_PATHS = {**dict.fromkeys(_DATA, saved_option), "trunk": trunk_option, "adapter": saved_option}


def train(args: Namespace) -> None:
    """``e3va train``."""
    given = {k: v for k, v in vars(args).items() if k in TRAIN_DEFAULTS}
    for key in given.keys() & _PATHS.keys():
        given[key] = _PATHS[key](given[key])
    highway = _highway_option(args)
    if highway:
        given["highway"] = highway
    folder = Path(args.output).expanduser()
    state = read_state(folder) if args.resume else None
    start = None
    if state:
        options = _resumed(given, state, folder)
    else:
        if given.get("adapter"):
            start = read_start(given["adapter"], given.get("trunk"))
        options = {**TRAIN_DEFAULTS, **(start.options if start else {}), **given}
        if start and "recipe" not in given.get("highway", {"recipe": ""}):
            options["highway"] = {**start.options["highway"], **given["highway"]}
    device = pick_device(args.device)
    if state is None and (folder / STATE).exists():
        raise UserError(
            f"{folder} holds a run already ({STATE}): add --resume to go on with it, or give "
            "another --output"
        )
    trainer = _build_trainer(options, state, start, folder, device, args)
    if state:
        trainer.load(state)
        print(f"going on after step {trainer.step} of {trainer.settings.steps}")
    trainer.train()
    curves.write(folder)
    if trainer.scores:
        print(trainer.scores.table())
    print(
        f"wrote {folder / MODEL}. Next:\n"
        f"  e3va predict {folder / MODEL} --input PHOTOS --output drawn\n"
        f"  e3va info {folder / MODEL}"
    )


def _highway_option(args: Namespace) -> dict[str, Any]:
    """The settings that ``--recipe`` and ``--highway`` give, for ``highway_config``."""
    settings: dict[str, Any] = {"recipe": args.recipe} if args.recipe else {}
    for text in args.highway_settings or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise UserError(f"--highway {text}: expected NAME=VALUE, such as rank=24")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    highway_config(**settings)  # raises an error before any data are read
    return settings


def _resumed(given: dict[str, Any], state: dict[str, Any], folder: Path) -> dict[str, Any]:
    stored = {**TRAIN_DEFAULTS, **state["data"].get("options", {})}
    for key, value in given.items():
        if value != stored[key]:
            raise UserError(
                f"--resume with --{key.replace('_', '-')} {value}, but the run in {folder} has "
                f"{'the default' if stored[key] is None else stored[key]}: leave the option out, "
                "or start anew in another --output"
            )
    return stored


def _build_trainer(
    options: dict[str, Any],
    state: dict[str, Any] | None,
    start: Start | None,
    folder: Path,
    device: torch.device,
    args: Namespace,
) -> Trainer:
    dataset, validation = _open_both(options)
    if state:
        config, settings = _stored(state, folder)
        check_classes(dataset, config.classes)
        if dataset.summary != state["data"].get("summary"):
            print("the training data have changed since this run began: it goes on with the new")
    else:
        config = model_config(options, dataset, start)
        settings = _settings(options, config, device)
    torch.manual_seed(settings.seed)
    model = build_model(config)
    if state is None:
        load_start(model, config, start, args.any_trunk)
    if config.trunk == DEMO_TRUNK:
        print(
            "trunk: the demonstration's, of 1.3 million parameters, which has seen drawn pictures "
            "alone; for real use give a pretrained Swin with --trunk FILE"
        )
    model.to(device)
    workers = args.workers if args.workers is not None else 4 * (device.type == "cuda")
    return Trainer(
        model,
        config,
        settings,
        dataset,
        folder,
        evaluate=(lambda: evaluate(model, validation, device)) if validation else None,
        workers=workers,
        data={"options": options, "summary": dataset.summary},
        tensorboard=_tensorboard(make_folder(folder)) if args.tensorboard else None,
    )


def _open_both(options: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Training data, and validation data if some are given."""
    dataset = open_data(options, "", training=True)
    print(dataset.summary)
    if not any(options[f"val_{kind}"] for kind in ("images", "annotations", "labels")):
        print("no validation data given (--val-images …): the model is not scored")
        return dataset, None
    validation = open_data(options, "val_", classes=() if dataset.coco else dataset.classes)
    print(f"validation: {validation.summary}")
    check_classes(validation, dataset.classes)
    return dataset, validation


def _stored(state: dict[str, Any], folder: Path) -> tuple[ModelConfig, TrainSettings]:
    try:
        settings = TrainSettings(**state["settings"])
    except TypeError as error:
        raise UserError(f"{folder / STATE}: its settings cannot be read ({error})") from None
    return ModelConfig.from_dict(state["config"], str(folder / STATE)), settings


def _settings(options: dict[str, Any], config: ModelConfig, device: torch.device) -> TrainSettings:
    chosen = {key: options[key] for key in _SETTINGS if options.get(key) is not None}
    chosen.setdefault("lr", HEADS[config.heads].lr)
    chosen.setdefault("precision", default_precision(device))
    return TrainSettings(**chosen)


def _tensorboard(folder: Path) -> Any:
    require("tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def open_data(
    options: dict[str, Any], prefix: str, *, training: bool = False, classes: tuple[str, ...] = ()
) -> Dataset:
    """The data set that ``--images`` and one of ``--annotations`` and ``--labels`` name.

    Raises:
        UserError: not one of each is given, or the data cannot be used.
    """
    flag = f"--{prefix.replace('_', '-')}"
    images, annotations, labels = (options[prefix + k] for k in ("images", "annotations", "labels"))
    if not images:
        raise UserError(f"{flag}images is not given: expected a folder of images")
    if not Path(images).expanduser().is_dir():
        raise UserError(f"{flag}images {images}: no such folder")
    if bool(annotations) == bool(labels):
        raise UserError(
            f"expected one of {flag}annotations (a COCO-format file) and {flag}labels (a folder "
            f"of label maps), got {'both' if labels else 'neither'}"
        )
    names = classes or tuple(
        n.strip() for n in (options.get("classes") or "").split(",") if n.strip()
    )
    if annotations:
        if options.get("classes"):
            raise UserError("--classes is for label maps: the annotation file has its own names")
        return coco_dataset(annotations, images, training)
    return label_dataset(images, labels, names)


def check_classes(dataset: Dataset, classes: tuple[str, ...]) -> None:
    """Refuse data with other classes than the model's.

    Raises:
        UserError: the names or their order differ.
    """
    if dataset.classes != tuple(classes):
        raise UserError(
            f"the data have the classes {', '.join(dataset.classes)}, but the model learned "
            f"{', '.join(classes)}: expected the same names in the order of their ids"
        )


def pick_device(name: str | None) -> torch.device:
    """The device of that name; by default CUDA where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--device {name}: {reason}; expected cpu, cuda or cuda:N") from None
    return device


def default_precision(device: torch.device) -> str:
    """bf16 on CUDA devices that compute it, fp16 on older ones, fp32 elsewhere."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def evaluate_model(args: Namespace) -> None:
    """``e3va eval``."""
    device = pick_device(args.device)
    model, config = load_model(args.model, device, args.trunk, args.any_trunk)
    labels = config.model == "semantic_fpn"
    if args.labels if not labels else args.annotations:
        raise UserError(f"{args.model} {WANTS[labels]}")
    dataset = open_data(vars(args), "", classes=config.classes if labels else ())
    print(dataset.summary)
    check_classes(dataset, config.classes)
    scores = evaluate(model, dataset, device)
    print(scores.table())
    if args.output:
        with atomic_open(args.output, "w") as file:
            json.dump({"scores": scores.values, "per_class": scores.per_class}, file, indent=1)


def predict(args: Namespace) -> int:
    """``e3va predict``; status 1 if an image could not be read."""
    images = find_images(args.input)
    device = pick_device(args.device)
    model, config = load_model(args.model, device, args.trunk, args.any_trunk)
    folder = make_folder(Path(args.output).expanduser())
    failed = predict_images(model, config, images, folder, args.threshold)
    print(f"{len(images) - len(failed)} of {len(images)} images drawn into {folder}")
    if failed:
        raise UserError(failed[0] + (f" (and {len(failed) - 1} more)" if failed[1:] else ""))
    return 0


def how_to_go_on(args: Namespace) -> str:
    """What to say after Ctrl-C."""
    if args.command != "train":
        return ""
    folder = Path(args.output).expanduser()
    if not (folder / STATE).is_file():
        return " before anything was saved"
    return f": {folder / STATE} is kept; e3va train --output {folder} --resume goes on from it"
