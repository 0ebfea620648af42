"""The start of a training: its options, the data, the model and the weights to start from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, read_adapter
from ..adapter_files.heads import to_framework
from ..highway.config import HighwayConfig, highway_config
from ..model_zoo.trunks import SCHEME, find_trunk_of
from ..swin.presets import SwinPreset, get_preset
from ..utils.atomic import atomic_open, make_folder
from ..utils.errors import UserError
from ..utils.optional import require
from ..utils.paths import check_tensorboard_folder
from .data import Dataset, check_classes
from .description import FRAMEWORK, fits, recognize
from .evaluate import evaluate
from .loading import find_saved
from .models import (
    BOX_MODELS,
    DEMO_TRUNK,
    HEADS,
    MASK_MODELS,
    RANDOM,
    ModelConfig,
    build_model,
    default_heads,
    load_pretrained,
    read_trunk,
)
from .options import (
    FROM_CONFIG,
    SETTINGS,
    anywhere,
    complete_options,
    resumed_options,
    without_effect,
)
from .settings import TrainSettings
from .trainer import STATE, Trainer, read_state
from .training_data import TrainingData, crowded_note, open_data

SPLIT = "split.json"


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
    given = {name: anywhere(name, value) for name, value in given.items()}
    state = start = None
    if resume:
        state = read_state(folder)
        options = resumed_options(given, state, folder)
        data, config, settings = _continue(options, state, str(folder / STATE))
    elif (folder / STATE).exists():
        raise UserError(
            f"{folder} already holds a run ({STATE}): add --resume to continue it, or give another "
            "--output"
        )
    else:
        start = _read_start(given["adapter"], given.get("trunk")) if "adapter" in given else None
        options = complete_options(given, start.options if start else {})
        data, config, settings = _begin(options, given, start, device)
    validation = data.validation
    crowded = crowded_note([data.training, validation], config.detections)
    if crowded:
        print(crowded)
    torch.manual_seed(settings.seed)
    model = build_model(config)
    if state is None:
        _load_weights(model, config, start, any_trunk)
    if config.trunk == DEMO_TRUNK:
        print(
            "trunk: the small one that comes with e3va (6.9 million parameters), trained on small "
            "photographs; for real use give a larger pretrained Swin with --trunk FILE"
        )
    model.to(device)
    writer = None
    if tensorboard:
        require("tensorboard", "--tensorboard")
        check_tensorboard_folder(folder, "--tensorboard with --output")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(make_folder(folder)))
    trainer = Trainer(
        *(model, config, settings, data.training, folder),
        evaluate=(lambda: evaluate(model, validation, device)) if validation else None,
        workers=4 * (device.type == "cuda") if workers is None else workers,
        data={"options": options, "summary": data.training.summary, "split": data.chosen},
        tensorboard=writer,
    )
    if data.chosen:
        with atomic_open(folder / SPLIT, "w") as file:
            json.dump({"validation": data.chosen}, file, indent=1)
    if state:
        trainer.load(state)
        print(f"continuing after step {trainer.step} of {settings.steps}")
    return trainer


def _read_start(source: str, trunk: str | None) -> Start:
    """Read an adapter to start from, and find its trunk unless one is given."""
    path = find_saved(source)
    state, about = read_adapter(path)
    if trunk is None:
        trunk = about.trunk.source
        if trunk != DEMO_TRUNK and not trunk.startswith(SCHEME):
            folder = path if path.is_dir() else path.parent
            trunk = anywhere("trunk", find_trunk_of(about, None, folder)[1])
    mapped, unknown = to_framework(state, FRAMEWORK)
    kind, heads = (None, None) if unknown else recognize(mapped)
    highway = about.backbone.highway.to_dict()
    options = {"trunk": trunk, "heads": heads, "highway": highway}
    return Start(source, state, about, kind, options)


def _begin(
    options: dict[str, Any], given: dict[str, Any], start: Start | None, device: torch.device
) -> tuple[TrainingData, ModelConfig, TrainSettings]:
    """Open the data of a new run, and return them with the run's config and settings."""
    preset = _find_preset(options, start)
    highway = highway_config(**(options["highway"] or {}))
    _check_highway(highway, preset)
    for note in without_effect(given, highway):
        print(note)
    model = options["model"]
    if model is None and start and start.kind in BOX_MODELS and not options["labels"]:
        model = start.kind
    data = open_data(options, model)
    dataset = data.training
    config = ModelConfig(
        model=model or _default_model(dataset, start),
        classes=dataset.classes,
        preset=preset,
        trunk=options["trunk"],
        heads=options["heads"] or default_heads(preset),
        category_ids=dataset.category_ids,
        highway=highway,
        detections=options["max_detections"],
        **{key: options[key] for key in FROM_CONFIG},
    )
    chosen = {key: options[key] for key in SETTINGS if options[key] is not None}
    defaults = {"lr": HEADS[config.heads].lr, "precision": _default_precision(device)}
    return data, config, TrainSettings(**{**defaults, **chosen})


def _continue(
    options: dict[str, Any], state: dict[str, Any], source: str
) -> tuple[TrainingData, ModelConfig, TrainSettings]:
    """Open the data of the run to resume, and return them with the run's config and settings."""
    config = ModelConfig.from_dict(state["config"], source)
    try:
        settings = TrainSettings(**state["settings"])
    except TypeError as error:
        raise UserError(f"{source}: its settings cannot be read ({error})") from None
    stored = state["data"]
    data = open_data(options, config.model, config.classes, stored.get("split"))
    check_classes(data.training, config.classes)
    if data.training.summary != stored.get("summary"):
        print("the training data have changed since the run began: it continues with the new data")
    return data, config, settings


def _default_precision(device: torch.device) -> str:
    """Return bf16 for CUDA devices that compute it, fp16 for older ones, fp32 for others."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def _find_preset(options: dict[str, Any], start: Start | None) -> SwinPreset:
    """Return the geometry of the trunk: the preset that is given, the adapter's or the file's."""
    if options["preset"]:
        return get_preset(options["preset"])
    if start:
        return start.about.backbone.preset
    trunk = options["trunk"]
    return get_preset("swin_t") if trunk == RANDOM else read_trunk(trunk)[1]


def _check_highway(highway: HighwayConfig, preset: SwinPreset) -> None:
    """Build the adapters of every width; they raise a UserError for options out of range."""
    make_adapter = highway.adapter_factory(preset.embed_dim)
    with torch.random.fork_rng(devices=[]):
        for dim in preset.dims if make_adapter else ():
            make_adapter(dim)


def _default_model(dataset: Dataset, start: Start | None) -> str:
    """Return the model for the data, if possible that of the adapter to start from."""
    if not dataset.coco:
        model, reason = "semantic_fpn", "the data are label maps"
    elif not dataset.coco.masks:
        model, reason = "faster_rcnn", "the annotations are boxes without masks"
    elif start and start.kind in MASK_MODELS:
        model, reason = start.kind, "it is the adapter's model"
    else:
        model, reason = "mask_rcnn", "the annotations have masks"
    print(f"model: {model}, because {reason}")
    return model


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
