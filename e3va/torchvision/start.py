"""The start of a training: its options, the data, the model and the weights to start from."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, read_adapter
from ..adapter_files.heads import to_framework
from ..highway.config import highway_config
from ..model_zoo.trunks import SCHEME, as_address, find_trunk_of
from ..swin.presets import get_preset
from ..utils.errors import UserError
from ..utils.optional import require
from .data import Dataset, check_classes, open_dataset
from .description import FRAMEWORK
from .evaluate import evaluate
from .fitting import fits, recognize
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
from .trainer import STATE, Trainer, make_folder

DATA_OF_MODEL = {True: "works on label maps: give --labels", False: "needs --annotations"}
DATA = ("images", "annotations", "labels", "val_images", "val_annotations", "val_labels")
_SETTINGS = {f.name: f.default for f in fields(TrainSettings)}
_CONFIG = {f.name: f.default for f in fields(ModelConfig)}
# The options of a training with their defaults, as ``e3va train`` has them and ``training.pth``
# stores them. None stands for a default that depends on the data, the trunk or the device.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys((*DATA, "classes")),
    "trunk": DEMO_TRUNK,
    **dict.fromkeys(("adapter", "preset", "model", "heads", "precision", "lr", "highway")),
    **{k: _CONFIG[k] for k in ("memory", "trunk_precision", "size", "max_size")},
    **{k: _SETTINGS[k] for k in ("steps", "batch_size", "adapter_lr", "trunk_lr", "seed")},
    **{k: _SETTINGS[k] for k in ("eval_every", "checkpoint_every")},
}


@dataclass(frozen=True)
class Start:
    """An adapter to start from.

    Attributes:
        source: the adapter's path or address.
        state: the adapter's tensors.
        about: the adapter's description.
        trunk: the option ``trunk`` for the trunk that it was trained on.
        kind: the option ``model`` for the adapter's model; None if this framework lacks it.
        heads: the option ``heads`` likewise.
    """

    source: str
    state: dict[str, Tensor]
    about: AdapterConfig
    trunk: str
    kind: str | None
    heads: str | None

    @property
    def options(self) -> dict[str, Any]:
        """The options of a training with the adapter's backbone and heads."""
        highway = self.about.backbone.highway.to_dict()
        return {"trunk": self.trunk, "heads": self.heads, "highway": highway}


def absolute_path(given: str) -> str:
    """Return a path, or an address of the zoo, that means the same in any working directory."""
    return given if given.startswith(SCHEME) else str(Path(given).expanduser().resolve())


def absolute_trunk(given: str) -> str:
    """Return the option ``trunk`` in a form that means the same in any working directory."""
    if given in (DEMO_TRUNK, RANDOM):
        return given
    return absolute_path(as_address(given) or given)


def read_start(source: str, trunk: str | None) -> Start:
    """Read an adapter to start from, and find its trunk unless one is given."""
    path = find_saved(source)
    state, about = read_adapter(path)
    if trunk is None:
        trunk = about.trunk.source
        if trunk != DEMO_TRUNK and not trunk.startswith(SCHEME):
            folder = path if path.is_dir() else path.parent
            trunk = absolute_trunk(find_trunk_of(about, None, folder)[1])
    mapped, unknown = to_framework(state, FRAMEWORK)
    kind, heads = (None, None) if unknown else recognize(mapped)
    return Start(source, state, about, trunk, kind, heads)


def new_options(given: dict[str, Any], start: Start | None = None) -> dict[str, Any]:
    """Complete the options of a new training.

    Args:
        given: options that the user gave, some of :data:`DEFAULTS`.
        start: the adapter to start from. Changes to its highway that name no recipe are changes to
            the adapter's settings.
    """
    own = start.options if start else {}
    options = {**DEFAULTS, **own, **given}
    if start and "recipe" not in (given.get("highway") or {}):
        options["highway"] = {**own["highway"], **(given.get("highway") or {})}
    highway_config(**(options["highway"] or {})).complete(LIGHT_TRUNK)  # before data are read
    return options


def resumed_options(given: dict[str, Any], state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the options of a run to resume.

    Args:
        given: options that the user gave, which must be those of the run.
        state: the run's checkpoint, see :func:`e3va.torchvision.trainer.read_state`.
        folder: the run's folder, for messages.

    Raises:
        UserError: an option differs from the run's.
    """
    stored = {**DEFAULTS, **upgrade(state["data"].get("options", {}))}
    for key, value in given.items():
        own = stored[key]
        if key == "highway":  # the same settings may be written with or without the recipe
            value, own = highway_config(**value), highway_config(**(own or {}))
        if value != own:
            raise UserError(
                f"--resume with --{key.replace('_', '-')} {value}, but the run in {folder} has "
                f"{'the default' if own is None else own}: leave the option out, "
                "or start a new run in another --output"
            )
    return stored


def build_trainer(
    options: dict[str, Any],
    folder: Path,
    device: torch.device,
    *,
    state: dict[str, Any] | None = None,
    start: Start | None = None,
    any_trunk: bool = False,
    workers: int | None = None,
    tensorboard: bool = False,
) -> Trainer:
    """Open the data, build the model, load its weights, and return the trainer.

    Args:
        options: the result of :func:`new_options` or :func:`resumed_options`.
        folder: the output folder.
        device: the model's device.
        state: the checkpoint of the run to resume; None for a new run.
        start: the adapter to start from.
        any_trunk: whether to accept another trunk than the adapter's.
        workers: number of processes that read images; None for 4 on a GPU, else 0.
        tensorboard: whether to write TensorBoard's files.
    """
    dataset, validation = _open_data(options)
    if state:
        config = ModelConfig.from_dict(state["config"], str(folder / STATE))
        try:
            settings = TrainSettings(**state["settings"])
        except TypeError as error:
            raise UserError(f"{folder / STATE}: its settings cannot be read ({error})") from None
        check_classes(dataset, config.classes)
        if dataset.summary != state["data"].get("summary"):
            print("the training data have changed since this run began: it continues with the new")
    else:
        config = model_config(options, dataset, start)
        chosen = {key: options[key] for key in _SETTINGS if options.get(key) is not None}
        defaults = {"lr": HEADS[config.heads].lr, "precision": default_precision(device)}
        settings = TrainSettings(**{**defaults, **chosen})
    torch.manual_seed(settings.seed)
    model = build_model(config)
    if state is None:
        _load_weights(model, config, start, any_trunk)
    if config.trunk == DEMO_TRUNK:
        print(
            "trunk: the demonstration's, with 1.3 million parameters, trained only on drawn "
            "pictures; for real use give a pretrained Swin with --trunk FILE"
        )
    model.to(device)
    trainer = Trainer(
        model,
        config,
        settings,
        dataset,
        folder,
        evaluate=(lambda: evaluate(model, validation, device)) if validation else None,
        workers=4 * (device.type == "cuda") if workers is None else workers,
        data={"options": options, "summary": dataset.summary},
        tensorboard=_summary_writer(make_folder(folder)) if tensorboard else None,
    )
    if state:
        trainer.load(state)
    return trainer


def _open_data(options: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Open the training data, and validation data if some are given."""
    names = tuple(n.strip() for n in (options["classes"] or "").split(",") if n.strip())
    dataset = open_dataset(
        *(options[key] for key in DATA[:3]), classes=names, training=True, prefix="--"
    )
    print(dataset.summary)
    if not any(options[key] for key in DATA[3:]):
        print("no validation data are given (--val-images …): the model is not scored")
        return dataset, None
    names = () if dataset.coco else dataset.classes
    validation = open_dataset(*(options[key] for key in DATA[3:]), classes=names, prefix="--val-")
    print(f"validation: {validation.summary}")
    check_classes(validation, dataset.classes)
    return dataset, validation


def _summary_writer(folder: Path) -> Any:
    require("tensorboard", "--tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def default_precision(device: torch.device) -> str:
    """Return bf16 for CUDA devices that compute it, fp16 for older ones, fp32 for others."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"


def model_config(options: dict[str, Any], dataset: Dataset, start: Start | None) -> ModelConfig:
    """Return the config of the model for the options of a training."""
    trunk = options["trunk"]
    if options["preset"]:
        preset = get_preset(options["preset"])
    elif start:
        preset = start.about.backbone.preset
    else:
        preset = get_preset("swin_t") if trunk == RANDOM else read_trunk(trunk)[1]
    semantic = dataset.coco is None
    model = options["model"] or (start.kind if start else None)
    if not model or (not options["model"] and (model == "semantic_fpn") != semantic):
        model = "semantic_fpn" if semantic else "mask_rcnn"
    if (model == "semantic_fpn") != semantic:
        raise UserError(f"--model {model} {DATA_OF_MODEL[not semantic]}")
    return ModelConfig(
        model=model,
        classes=dataset.classes,
        preset=preset,
        trunk=trunk,
        heads=options["heads"] or default_heads(preset),
        category_ids=dataset.category_ids,
        highway=highway_config(**(options["highway"] or {})),
        **{key: options[key] for key in ("memory", "trunk_precision", "size", "max_size")},
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
