"""The start of a training: its options, the data, the model and the weights to start from."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, read_adapter
from ..adapter_files.heads import to_framework
from ..data.coco import ReadOptions
from ..data.label_maps import class_names
from ..highway.config import highway_config
from ..model_zoo.trunks import SCHEME, as_address, find_trunk_of
from ..swin.presets import get_preset
from ..utils.atomic import make_folder
from ..utils.errors import UserError
from ..utils.optional import require
from ..utils.paths import check_tensorboard_folder
from .data import Dataset, check_classes, open_dataset
from .description import FRAMEWORK, fits, recognize
from .evaluate import evaluate
from .loading import find_saved
from .models import (
    DEMO_TRUNK,
    HEADS,
    LIGHT_TRUNK,
    RANDOM,
    ModelConfig,
    build_model,
    default_heads,
    load_pretrained,
    read_trunk,
    upgrade,
)
from .settings import TrainSettings
from .trainer import STATE, Trainer, read_state

DATA_OF_MODEL = {
    True: "works on label maps: give --labels",
    False: "needs --annotations, not --labels",
}
DATA = ("images", "annotations", "labels", "val_images", "val_annotations", "val_labels")
_NOT_OPTIONS = ("weight_decay", "clip_norm")
_SETTINGS = {f.name: f.default for f in fields(TrainSettings) if f.name not in _NOT_OPTIONS}
_CONFIG = {f.name: f.default for f in fields(ModelConfig)}
_FROM_CONFIG = ("memory", "trunk_precision", "size", "max_size")
# The options of a training with their defaults, as ``e3va train`` has them and ``training.pth``
# stores them. None stands for a default that depends on the data, the trunk or the device.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys((*DATA, "classes")),
    "trunk": DEMO_TRUNK,
    **dict.fromkeys(("adapter", "preset", "model", "heads", "highway")),
    **{name: _CONFIG[name] for name in _FROM_CONFIG},
    **{**_SETTINGS, "lr": None, "precision": None},
}


@dataclass(frozen=True)
class Start:
    """An adapter to start from."""

    source: str  # path or address
    state: dict[str, Tensor]
    about: AdapterConfig
    kind: str | None  # the option "model"; None if this framework lacks the adapter's model
    options: dict[str, Any]  # "trunk", "heads" and "highway"


def start_training(
    given: dict[str, Any],
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    any_trunk: bool = False,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Trainer:
    """Open the data, build the model, load its weights, and return the trainer.

    ``given`` are the user's options, some of :data:`DEFAULTS`; ``workers`` is the number of
    processes that read images, None for 4 on a GPU and else 0.
    """
    given = {name: _anywhere(name, value) for name, value in given.items()}
    state = start = None
    if resume:
        state = read_state(folder)
        options = resumed_options(given, state, folder)
    elif (folder / STATE).exists():
        raise UserError(
            f"{folder} already holds a run ({STATE}): add --resume to continue it, or give another "
            "--output"
        )
    else:
        start = _read_start(given["adapter"], given.get("trunk")) if "adapter" in given else None
        options = _new_options(given, start)
    dataset, validation = _open_data(options)
    if state:
        config, settings = _stored_settings(state, dataset, str(folder / STATE))
    else:
        config = _model_config(options, dataset, start)
        chosen = {key: options[key] for key in _SETTINGS if options[key] is not None}
        defaults = {"lr": HEADS[config.heads].lr, "precision": _default_precision(device)}
        settings = TrainSettings(**{**defaults, **chosen})
    torch.manual_seed(settings.seed)
    model = build_model(config)
    if state is None:
        _load_weights(model, config, start, any_trunk)
    if config.trunk == DEMO_TRUNK:
        print(
            "trunk: the small one that comes with e3va (1.3 million parameters), trained only on "
            "drawn pictures; for real use give a pretrained Swin with --trunk FILE"
        )
    model.to(device)
    writer = None
    if tensorboard:
        require("tensorboard", "--tensorboard")
        check_tensorboard_folder(folder, "--tensorboard with --output")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(make_folder(folder)))
    trainer = Trainer(
        *(model, config, settings, dataset, folder),
        evaluate=(lambda: evaluate(model, validation, device)) if validation else None,
        workers=4 * (device.type == "cuda") if workers is None else workers,
        data={"options": options, "summary": dataset.summary},
        tensorboard=writer,
    )
    if state:
        trainer.load(state)
        print(f"continuing after step {trainer.step} of {settings.steps}")
    return trainer


def _anywhere(name: str, value: Any) -> Any:
    """Return an option in a form that means the same in any working directory."""
    if name == "trunk" and value not in (DEMO_TRUNK, RANDOM):
        value = as_address(value) or value
    elif name not in (*DATA, "adapter"):
        return value
    return value if value.startswith(SCHEME) else str(Path(value).expanduser().resolve())


def _read_start(source: str, trunk: str | None) -> Start:
    """Read an adapter to start from, and find its trunk unless one is given."""
    path = find_saved(source)
    state, about = read_adapter(path)
    if trunk is None:
        trunk = about.trunk.source
        if trunk != DEMO_TRUNK and not trunk.startswith(SCHEME):
            folder = path if path.is_dir() else path.parent
            trunk = _anywhere("trunk", find_trunk_of(about, None, folder)[1])
    mapped, unknown = to_framework(state, FRAMEWORK)
    kind, heads = (None, None) if unknown else recognize(mapped)
    highway = about.backbone.highway.to_dict()
    options = {"trunk": trunk, "heads": heads, "highway": highway}
    return Start(source, state, about, kind, options)


def _new_options(given: dict[str, Any], start: Start | None) -> dict[str, Any]:
    """Complete the options; with an adapter, changes to its highway may leave out the recipe."""
    own = start.options if start else {}
    options = {**DEFAULTS, **own, **given}
    changes = given.get("highway") or {}
    if start and "recipe" not in changes:
        options["highway"] = highway_config(**own["highway"]).changed(**changes).to_dict()
    highway_config(**(options["highway"] or {})).complete(LIGHT_TRUNK)  # before data are read
    model, labels = options["model"], bool(options["labels"])
    if model and labels != (model == "semantic_fpn"):
        raise UserError(f"--model {model} {DATA_OF_MODEL[not labels]}")
    return options


def resumed_options(given: dict[str, Any], state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the options of the run in ``state``; raise a UserError if a given one differs."""
    stored = {**DEFAULTS, **upgrade(state["data"].get("options", {}))}
    config = ModelConfig.from_dict(state["config"], str(folder / STATE))
    for key, value in given.items():
        own = stored[key]
        if key == "highway":  # the run's settings may be written with or without the recipe
            own = config.highway
            value = highway_config(**value) if "recipe" in value else own.changed(**value)
            value = value.complete(config.preset.embed_dim)
        if value != own:
            raise UserError(
                f"--resume with --{key.replace('_', '-')} {value}, but the run in {folder} has "
                f"{'the default' if own is None else own}: leave the option out, "
                "or start a new run in another --output"
            )
    return stored


def _open_data(options: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Open the training data, and validation data if some are given."""
    names = class_names(options["classes"])
    paths, validation_paths = ([options[key] for key in part] for part in (DATA[:3], DATA[3:]))
    dataset = open_dataset(*paths, classes=names, options=ReadOptions(training=True), prefix="--")
    print(dataset.summary)
    if not any(validation_paths):
        print("no validation data are given (--val-images …): the model is not scored")
        return dataset, None
    names = () if dataset.coco else dataset.classes
    validation = open_dataset(*validation_paths, classes=names, prefix="--val-")
    print(f"validation: {validation.summary}")
    check_classes(validation, dataset.classes)
    return dataset, validation


def _stored_settings(
    state: dict[str, Any], dataset: Dataset, source: str
) -> tuple[ModelConfig, TrainSettings]:
    """Return model config and settings of the run to resume, and compare the data."""
    config = ModelConfig.from_dict(state["config"], source)
    try:
        settings = TrainSettings(**state["settings"])
    except TypeError as error:
        raise UserError(f"{source}: its settings cannot be read ({error})") from None
    check_classes(dataset, config.classes)
    if dataset.summary != state["data"].get("summary"):
        print("the training data have changed since the run began: it continues with the new data")
    return config, settings


def _default_precision(device: torch.device) -> str:
    """Return bf16 for CUDA devices that compute it, fp16 for older ones, fp32 for others."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def _model_config(options: dict[str, Any], dataset: Dataset, start: Start | None) -> ModelConfig:
    trunk = options["trunk"]
    if options["preset"]:
        preset = get_preset(options["preset"])
    elif start:
        preset = start.about.backbone.preset
    else:
        preset = get_preset("swin_t") if trunk == RANDOM else read_trunk(trunk)[1]
    detector = start.kind if start and start.kind != "semantic_fpn" else None
    default = (detector or "mask_rcnn") if dataset.coco else "semantic_fpn"
    return ModelConfig(
        model=options["model"] or default,
        classes=dataset.classes,
        preset=preset,
        trunk=trunk,
        heads=options["heads"] or default_heads(preset),
        category_ids=dataset.category_ids,
        highway=highway_config(**(options["highway"] or {})),
        **{key: options[key] for key in _FROM_CONFIG},
    )


def _load_weights(
    model: nn.Module, config: ModelConfig, start: Start | None, any_trunk: bool
) -> None:
    """Load the trunk and the adapter to start from, and print notes about them."""
    if config.trunk != RANDOM:
        for note in load_pretrained(model, config.trunk).notes:
            print(f"trunk: {note}")
    if start is None:
        return
    state, unknown = to_framework(start.state, FRAMEWORK)
    same_classes = start.about.classes == tuple(config.classes)
    whole = same_classes and not unknown and fits(model, state)
    apply_adapter(
        *(model, start.state, start.about, start.source),
        backbone_only=not whole,
        any_trunk=any_trunk,
        framework=FRAMEWORK,
    )
    part = "the whole adapter" if whole else "its backbone part; neck and heads are random"
    print(f"starts from {start.source}: {part}")
