"""The description of an adapter: what it was trained on, and what it fits."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from .._version import __version__
from ..backbone import LEVELS, BackboneConfig, E3VABackbone, find_backbone, trunk_prefix
from ..highway.config import OUTSIDE, from_version_1, read_highway
from ..swin.presets import SwinPreset, preset_name, same_geometry
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from ..weights.loading import find_trunk, read_geometry, trunk_state
from ..weights.origin import UNKNOWN, TrunkOrigin, fingerprint, origin_of

FORMAT_VERSION = 2
_STORED = re.compile(r"(int8 )?(fp32|bf16|fp16)(, (int8 )?(fp32|bf16|fp16)){0,8}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says.

    Attributes:
        backbone: the settings of the backbone.
        trunk: the pretrained weights that it was trained on.
        trunk_prefix: what the trunk's names begin with in the model's state dict.
        framework: ``"torchvision"``, ``"detectron2"``, or ``""`` for a model of neither.
        model: by what the framework builds the model; plain data, never a callable's name.
        classes: names, in the order of the model's outputs.
        trained_on: for people.
        steps: of training; None where it is not known.
        scores: on validation data, by their names; what is no number is left out.
        library_version: of e3va, that wrote it.
    """

    backbone: BackboneConfig
    trunk: TrunkOrigin
    trunk_prefix: str
    framework: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    trained_on: str = ""
    steps: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    library_version: str = ""

    def __post_init__(self) -> None:
        # A class without objects has no AP, and JSON no NaN.
        finite = {name: float(v) for name, v in self.scores.items() if math.isfinite(v)}
        object.__setattr__(self, "scores", finite)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the preset by its name where it has one."""
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        return {
            "format_version": FORMAT_VERSION,
            **listed,
            "library_version": self.library_version or __version__,
            "backbone": self.backbone.to_dict(),
            "trunk": asdict(self.trunk),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> "AdapterConfig":
        """The inverse of :meth:`to_dict`, for data that anybody may have written.

        Raises:
            UserError: another format version, an entry that is missing, of another type or out of
                range; ``source`` names the file.
        """
        version = data.get("format_version")
        if version not in (1, FORMAT_VERSION):
            raise UserError(
                f"{source} has adapter format version {version!r}: this e3va ({__version__}) reads "
                f"versions 1 and {FORMAT_VERSION}; update e3va or train again"
            )
        try:
            if version == 1:
                data = _from_version_1(data)
            known = {f.name for f in fields(cls)} - {"backbone", "trunk"}
            plain = {key: value for key, value in data.items() if key in known}
            config = cls(
                backbone=BackboneConfig.from_dict(data["backbone"]),
                trunk=TrunkOrigin(**data["trunk"]),
                **{**plain, "classes": tuple(plain.get("classes", ()))},
            )
            config._check_types()
            return config
        except (
            *(KeyError, TypeError, ValueError, AttributeError, OverflowError, UserError),
        ) as error:
            what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(
                f"{source}: its description cannot be read ({what}): it was altered, or another "
                "program wrote it; copy or download it again"
            ) from None

    def _check_types(self) -> None:
        texts = (
            self.trunk_prefix,
            self.framework,
            self.trained_on,
            self.trunk.source,
            *self.classes,
        )
        if not all(isinstance(text, str) for text in (*texts, self.library_version)):
            raise TypeError("a text is expected for names and classes")
        if not isinstance(self.model, dict):
            raise TypeError("an object is expected for model")
        if not (self.steps is None or isinstance(self.steps, int)):
            raise TypeError(f"steps {self.steps!r}")
        if not _HEX.fullmatch(self.trunk.fingerprint) or not _STORED.fullmatch(self.trunk.stored):
            raise ValueError("the trunk's fingerprint or form")
        if not self.trunk_prefix.endswith("trunk."):
            raise ValueError(f"trunk_prefix {self.trunk_prefix!r}")

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> "AdapterConfig":
        """Read off the tensors of a whole model what can be read off them.

        Raises:
            UserError: there is no E³VA backbone among them.
        """
        prefix = find_trunk(state)
        if prefix is None or not prefix.endswith("trunk."):
            raise UserError(
                f"{source} holds no E³VA backbone: expected a checkpoint of a whole model that was "
                "trained along its highway"
            )
        trunk = trunk_state(state, prefix)
        highway = prefix.removesuffix("trunk.") + "highway."
        own = {k[len(highway) :]: v for k, v in state.items() if k.startswith(highway)}
        levels = [LEVELS[s] for s in range(4) if f"stages.{s}.out_norm.weight" in own]
        preset = read_geometry(trunk, source)
        config = read_highway(own, preset.embed_dim)
        backbone = BackboneConfig(preset, config, tuple(levels))
        return cls(backbone, TrunkOrigin(UNKNOWN, fingerprint(trunk)), prefix)

    def check_backbone(self, backbone: E3VABackbone, source: str) -> None:
        """Check that the adapter is one for ``backbone``.

        Raises:
            UserError: they differ in a setting; the text says in which.
        """
        ours, theirs = _flat(backbone.config), _flat(self.backbone)
        differ = [k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k)]
        if not same_geometry(backbone.config.preset, self.backbone.preset):
            differ.insert(0, "preset")
            ours["preset"], theirs["preset"] = backbone.config.preset, self.backbone.preset
        if differ:
            text = "; ".join(f"{k} {_say(theirs.get(k))}, not {_say(ours.get(k))}" for k in differ)
            raise UserError(
                f"{source} is for a backbone with other settings ({text}): build the model with "
                "those, or give another adapter"
            )

    def check_origin(self, trunk: SwinTrunk, source: str) -> None:
        """Check that a trunk holds the weights that the adapter was trained on.

        Raises:
            UserError: its fingerprint is another; the text has both.
        """
        found = origin_of(trunk)
        if found.fingerprint != self.trunk.fingerprint:
            raise UserError(
                f"{source} was trained on the trunk {self.trunk.source} (fingerprint "
                f"{self.trunk.short}), but this trunk is {found.source} (fingerprint "
                f"{found.short}): give the trunk that it was trained on, or override with "
                "any_trunk=True (--any-trunk)"
            )


def _say(value: Any) -> str:
    if isinstance(value, SwinPreset):
        return preset_name(value) or str(value)
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _flat(config: BackboneConfig) -> dict[str, Any]:
    return {**config.highway.to_dict(), "out_features": config.out_features}


def _from_version_1(data: Mapping[str, Any]) -> dict[str, Any]:
    old = data["backbone"]
    settings = {**old, "reduction": old["bottleneck_reduction"]}
    backbone = {
        **{key: old[key] for key in ("preset", "geometry", "out_features")},
        "highway": from_version_1(settings),
    }
    return {**data, "framework": data.get("host", ""), "backbone": backbone}


def describe_model(model: nn.Module, /, **about: Any) -> AdapterConfig:
    """Describe the adapter in a model; ``about`` are further fields of :class:`AdapterConfig`.

    Raises:
        UserError: the model has no E³VA backbone, or its trunk trains.
    """
    _, backbone = find_backbone(model)
    if not backbone.trunk.frozen:
        raise UserError(
            "the trunk trains too (recipe 'full'), so its weights are part of the result: save the "
            "whole model"
        )
    if backbone.config.highway.adapter == OUTSIDE:
        raise UserError(
            "the adapters come from outside the registry, so no file can name them: register their "
            "kind with e3va.register_adapter_kind, or save the whole model"
        )
    return AdapterConfig(backbone.config, origin_of(backbone.trunk), trunk_prefix(model), **about)
