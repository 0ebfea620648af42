"""The start of a training: its options, the data, the model and the weights to start from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, read_adapter, without_trunk
from ..adapter_files.heads import to_framework
from ..backbone import trunk_prefix
from ..highway.config import HighwayConfig, highway_config
from ..model_zoo.rows import SCHEMES
from ..model_zoo.trunks import find_trunk_of
from ..swin.presets import SwinPreset, get_preset
from ..swin.trunk import SwinTrunk
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
    TASKS,
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


@dataclass
class Run:
    """A training that is about to start: its options, data, config and settings."""

    folder: Path
    device: torch.device
    options: dict[str, Any]
    data: TrainingData
    config: ModelConfig
    settings: TrainSettings
    state: dict[str, Any] | None = None  # the checkpoint to continue from
    start: Start | None = None
    together: dict[str, Any] = field(default_factory=dict)  # see e3va.torchvision.together
    note: str = ""  # what the report says of the data


def start_training(
    given: dict[str, Any],
    folder: Path,
    device: torch.device,
    *,
    resume: bool = False,
    **options: Any,
) -> Trainer:
    """Open the data, build the model, load its weights, and return the trainer.

    ``given`` are the user's options, some of :data:`DEFAULTS`; ``resume`` continues the run in
    ``folder``; the others are those of :func:`build_trainer`.
    """
    run = open_run(given, folder, device, resume=resume)
    if run.together:
        raise UserError(
            f"the run in {folder} trains together with others over one trunk: continue all of them "
            f"with --output {folder.parent} --resume"
        )
    return build_trainer(run, **options)


def open_run(
    given: dict[str, Any], folder: Path, device: torch.device, *, resume: bool = False
) -> Run:
    """Open the data of a new run, or of the run in ``folder`` to resume, and find its config."""
    given = {name: anywhere(name, value) for name, value in given.items()}
    if resume:
        state = read_state(folder)
        options = resumed_options(given, state, folder)
        run = Run(folder, device, options, *_continue(options, state, str(folder / STATE)), state)
        run.together = state["data"].get("together") or {}
    elif (folder / STATE).exists():
        raise UserError(
            f"{folder} already holds a run ({STATE}): add --resume to continue it, or give another "
            "--output"
        )
    else:
        for task in TASKS:
            if (folder / task / STATE).is_file():
                raise UserError(
                    f"{folder} holds the run in {task}, which --resume would continue: give "
                    "another --output"
                )
        start = _read_start(given["adapter"], given.get("trunk")) if "adapter" in given else None
        options = complete_options(given, start.options if start else {})
        run = Run(folder, device, options, *_begin(options, given, start, device), start=start)
    crowded = crowded_note([run.data.training, run.data.validation], run.config.detections)
    if crowded:
        print(crowded)
    return run


def build_trainer(
    run: Run,
    *,
    any_trunk: bool = False,
    workers: int | None = None,
    tensorboard: bool = False,
    trunk: SwinTrunk | None = None,
) -> Trainer:
    """Build the model of a run, load its weights, and return the trainer.

    Args:
        run: the run.
        any_trunk: whether to start from an adapter of another trunk.
        workers: number of processes that read images; None for 4 on a GPU and else 0.
        tensorboard: whether to write TensorBoard's files too.
        trunk: trunk of another run, with its weights and on its device, to share; None to load one.
    """
    config, settings, data, folder = run.config, run.settings, run.data, run.folder
    torch.manual_seed(settings.seed)
    model = build_model(config)
    if trunk is not None:
        first = model.state_dict()  # a highway's random weights depend on those of a trunk before
        model = build_model(config, trunk)
        model.load_state_dict(without_trunk(first, trunk_prefix(model)), strict=False)
    if run.state is None:
        _load_weights(model, run, any_trunk, loaded=trunk is not None)
    if config.trunk == DEMO_TRUNK and trunk is None:
        print(
            "trunk: the small one that comes with e3va (6.9 million parameters), trained on small "
            "photographs; for real use give a larger pretrained Swin with --trunk FILE"
        )
    model.to(run.device)
    writer = None
    if tensorboard:
        require("tensorboard", "--tensorboard")
        check_tensorboard_folder(folder, "--tensorboard with --output")
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(make_folder(folder)))
    validation, chosen = data.validation, data.chosen
    trainer = Trainer(
        *(model, config, settings, data.training, folder),
        evaluate=(lambda: evaluate(model, validation, run.device)) if validation else None,
        workers=4 * (run.device.type == "cuda") if workers is None else workers,
        data={"options": run.options, "summary": data.training.summary, "split": chosen},
        tensorboard=writer,
    )
    if run.together:
        trainer.data |= {"together": run.together, "note": run.note}
    if chosen:
        with atomic_open(folder / SPLIT, "w") as file:
            json.dump({"validation": chosen}, file, indent=1)
    if run.state:
        trainer.load(run.state)
        print(f"continuing after step {trainer.step} of {settings.steps}")
    return trainer


def _read_start(source: str, trunk: str | None) -> Start:
    """Read an adapter to start from, and find its trunk unless one is given."""
    path = find_saved(source)
    state, about = read_adapter(path)
    if trunk is None:
        trunk = about.trunk.source
        if trunk != DEMO_TRUNK and not trunk.startswith(SCHEMES):
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


def _load_weights(model: nn.Module, run: Run, any_trunk: bool, loaded: bool) -> None:
    """Load the trunk unless it is loaded, and the adapter to start from; print notes on them."""
    config, start = run.config, run.start
    if config.trunk != RANDOM and not loaded:
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
