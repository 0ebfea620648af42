"""What a training starts from: a model's description, a pretrained trunk, perhaps an adapter."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, read_adapter, without_trunk
from ..adapter_files.heads import to_framework
from ..backbone import trunk_prefix
from ..highway.config import highway_config
from ..model_zoo.trunks import SCHEME, as_address, find_trunk_of
from ..swin.presets import get_preset
from ..utils.errors import UserError
from .data import Dataset
from .description import FRAMEWORK
from .fitting import recognise
from .loading import find_saved
from .models import DEMO_TRUNK, RANDOM, ModelConfig, default_heads, load_pretrained, read_trunk

WANTS = {True: "works on label maps: give --labels", False: "needs instances: give --annotations"}
_CONFIG = {f.name for f in fields(ModelConfig)}


@dataclass(frozen=True)
class Start:
    """An adapter to start from.

    Attributes:
        source: its path or address, as it was given.
        state, about: what :func:`e3va.adapter_files.files.read_adapter` gave.
        trunk: ``--trunk`` by which the trunk that it was trained on is had.
        kind, heads: ``--model`` and ``--heads`` of its model; None for one of no kind known here.
    """

    source: str
    state: dict[str, Tensor]
    about: AdapterConfig
    trunk: str
    kind: str | None
    heads: str | None

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``e3va train`` with which backbone and heads are as the adapter's."""
        highway = self.about.backbone.highway.to_dict()
        return {"trunk": self.trunk, "heads": self.heads, "highway": highway}


def trunk_option(given: str) -> str:
    """``--trunk`` in the form that means the same in any folder: a file's whole path, an address
    of the zoo in place of a bare name."""
    if given in (DEMO_TRUNK, RANDOM) or given.startswith(SCHEME):
        return given
    return as_address(given) or str(Path(given).expanduser().resolve())


def saved_option(given: str) -> str:
    """``--adapter`` likewise."""
    return given if given.startswith(SCHEME) else str(Path(given).expanduser().resolve())


def read_start(source: str, trunk: str | None) -> Start:
    """Read an adapter to start from, and find its trunk unless one is given.

    Raises:
        UserError: it cannot be read, or its trunk is not to be found.
    """
    path = find_saved(source)
    state, about = read_adapter(path)
    if trunk is None:
        trunk = about.trunk.source
        if trunk != DEMO_TRUNK and not trunk.startswith(SCHEME):
            folder = path if path.is_dir() else path.parent
            trunk = trunk_option(find_trunk_of(about, None, folder)[1])
    mapped, left = to_framework(state, FRAMEWORK)
    return Start(source, state, about, trunk, *((None, None) if left else recognise(mapped)))


def model_config(options: dict[str, Any], dataset: Dataset, start: Start | None) -> ModelConfig:
    """The description of the model that the options of ``e3va train`` ask for.

    Raises:
        UserError: a kind of model that the data are not for; an unknown preset; no readable trunk.
    """
    trunk = options["trunk"]
    if options["preset"]:
        preset = get_preset(options["preset"])
    elif start:
        preset = start.about.backbone.preset
    else:
        preset = get_preset("swin_t") if trunk == RANDOM else read_trunk(trunk)[1]
    kind = "mask_rcnn" if dataset.coco else "semantic_fpn"
    model = options["model"] or kind
    if start and start.kind and not options["model"]:
        same_data = (start.kind == "semantic_fpn") == (kind == "semantic_fpn")
        model = start.kind if same_data else kind
    if (model == "semantic_fpn") != (kind == "semantic_fpn"):
        raise UserError(f"--model {model} {WANTS[model == 'semantic_fpn']}")
    own = {"model", "classes", "preset", "trunk", "heads", "category_ids", "highway"}
    return ModelConfig(
        model=model,
        classes=dataset.classes,
        preset=preset,
        trunk=trunk,
        heads=options["heads"] or default_heads(preset),
        category_ids=dataset.category_ids,
        highway=highway_config(**(options["highway"] or {})),
        **{key: value for key, value in options.items() if key in _CONFIG - own},
    )


def load_start(
    model: nn.Module, config: ModelConfig, start: Start | None, any_trunk: bool = False
) -> None:
    """Load the weights that a training starts from, and print what is worth knowing of them.

    Raises:
        UserError: they are of another size, or not the trunk of the adapter.
    """
    if config.trunk != RANDOM:
        for note in load_pretrained(model, config.trunk).notes:
            print(f"trunk: {note}")
    if start is None:
        return
    whole = _fits(model, config, start)
    apply_adapter(
        *(model, start.state, start.about, start.source),
        backbone_only=not whole,
        any_trunk=any_trunk,
        framework=FRAMEWORK,
    )
    print(
        f"starts from {start.source}: "
        + ("the whole of it" if whole else "its backbone part; neck and heads start anew")
    )


def _fits(model: nn.Module, config: ModelConfig, start: Start) -> bool:
    """Whether the adapter's neck and heads are those of the model, for the same classes."""
    state, left = to_framework(start.state, FRAMEWORK)
    own = without_trunk(model.state_dict(), trunk_prefix(model))
    return (
        start.about.classes == tuple(config.classes)
        and not left
        and {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
    )
