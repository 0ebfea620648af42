"""The options of a training: their defaults, and those that a resumed run has stored."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..highway.config import HighwayConfig, highway_config
from ..model_zoo.rows import SCHEMES
from ..model_zoo.trunks import as_address
from ..utils.errors import UserError
from .models import DEMO_TRUNK, RANDOM, ModelConfig
from .settings import TrainSettings
from .trainer import STATE

DATA_OF_MODEL = {
    True: "works on label maps: give --labels",
    False: "needs --annotations, not --labels",
}
DATA = ("images", "annotations", "labels", "val_images", "val_annotations", "val_labels")
# Two models that train together: their names and folders, see e3va.torchvision.together.
INSTANCES, LABELS = TASKS = ("instances", "labels")
# Options that say how annotations of instances are read; they are off by default.
READING = ("skip_missing", "use_crowds", "keep_empty")
SETTINGS = {
    f.name: f.default for f in fields(TrainSettings) if f.name not in ("weight_decay", "clip_norm")
}
_CONFIG = {f.name: f.default for f in fields(ModelConfig)}
FROM_CONFIG = ("memory", "trunk_precision", "size", "max_size")
# The options of a training with their defaults, as ``e3va train`` has them and ``training.pth``
# stores them. None stands for a default that depends on the data, the trunk or the device.
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys((*DATA, "val_split", "classes")),
    **dict.fromkeys(READING, False),
    "trunk": DEMO_TRUNK,
    **dict.fromkeys(("adapter", "preset", "model", "heads", "highway")),
    "max_detections": _CONFIG["detections"],
    **{name: _CONFIG[name] for name in FROM_CONFIG},
    **{**SETTINGS, "lr": None, "precision": None},
}


def anywhere(name: str, value: Any) -> Any:
    """Return an option in a form that means the same in any working directory."""
    if name == "trunk" and value not in (DEMO_TRUNK, RANDOM):
        value = as_address(value) or value
    elif name not in (*DATA, "adapter"):
        return value
    return value if value.startswith(SCHEMES) else str(Path(value).expanduser().resolve())


def complete_options(given: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a new run; ``start`` are those of an adapter to start from, or {}.

    With an adapter, changes to its highway may leave out the recipe.

    Raises:
        UserError: two options contradict one another.
    """
    options = {**DEFAULTS, **start, **given}
    changes = given.get("highway") or {}
    if start and "recipe" not in changes:
        options["highway"] = highway_config(**start["highway"]).changed(**changes).to_dict()
    model, labels = options["model"], bool(options["labels"])
    if model and labels != (model == "semantic_fpn"):
        raise UserError(f"--model {model} {DATA_OF_MODEL[not labels]}")
    if options["val_split"]:
        for name in filter(options.get, DATA[3:]):
            raise UserError(
                f"--val-split {options['val_split']} and {_flag(name)}: expected one of the two, "
                "a share of the training data or validation data of their own"
            )
    return options


def without_effect(given: Mapping[str, Any], highway: HighwayConfig) -> Iterator[str]:
    """Yield a line for each option that is given and does not change the training."""
    if not highway.train_trunk and "trunk_lr" in given:
        yield _note("--trunk-lr", "the trunk is frozen")
    if highway.train_trunk and given.get("trunk_precision", "auto") != "auto":
        yield _note("--trunk-precision", "the trunk trains in the --precision of the model")
    if highway.inside and given.get("trunk_precision", "auto") != "auto":
        yield _note("--trunk-precision", "adapters inside the trunk compute in the --precision")
    if highway.adapter is None and "adapter_lr" in given:
        yield _note("--adapter-lr", f"the recipe {highway.recipe} has no adapters")
    reason = f"the adapter kind {highway.adapter} is a side network"
    if highway.adapter is None:
        reason = f"the recipe {highway.recipe} has no adapters"
    elif highway.inside:
        reason = "the adapters stand inside the trunk"
    for name, value in (given.get("highway") or {}).items():
        if name in highway.without_effect:
            yield _note(f"--highway {name}={value}", reason)
    if given.get("labels"):
        for name in {*READING, "max_detections"} - {"skip_missing"} & given.keys():
            yield _note(_flag(name), "label maps have no objects")


def resumed_options(
    given: Mapping[str, Any], state: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Return the options of the run in ``state``; raise a UserError if a given one differs."""
    stored = {**DEFAULTS, **state["data"].get("options", {})}
    config = ModelConfig.from_dict(state["config"], str(folder / STATE))
    for key, value in given.items():
        own = stored[key]
        if key == "highway":  # the run's settings may be written with or without the recipe
            own = config.highway
            value = highway_config(**value) if "recipe" in value else own.changed(**value)
            value = value.complete(config.preset.embed_dim)
        if value != own:
            raise UserError(
                f"--resume with {_flag(key)} {value}, but the run in {folder} has "
                f"{'the default' if own is None else own}: leave the option out, "
                "or start a new run in another --output"
                + f", perhaps from this one with --adapter {folder}"
                * (key == "steps")
            )
    return stored


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _note(option: str, reason: str) -> str:
    return f"note: {option} has no effect: {reason}"
