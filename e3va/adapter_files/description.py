"""The description of an adapter: its training, and the models that it fits."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from .._version import __version__
from ..backbone import LEVELS, BackboneConfig, E3VABackbone, find_backbone, trunk_prefix
from ..highway.config import OUTSIDE, read_highway
from ..swin.presets import preset_name, same_geometry
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError, brief
from ..weights.loading import find_trunk, read_geometry, trunk_state
from ..weights.origin import UNKNOWN, TrunkOrigin, fingerprint, origin_of

FORMAT_VERSION = 2
_STORED = re.compile(r"(int8 )?(fp32|bf16|fp16)(, (int8 )?(fp32|bf16|fp16)){0,8}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AdapterConfig:
    """Contents of ``adapter_config.json``.

    Attributes:
        backbone: config of the backbone.
        trunk: origin of the pretrained weights on which the adapter was trained.
        trunk_prefix: prefix of the trunk's names in the model's state dict.
        framework: ``"torchvision"``, ``"detectron2"``, or ``""`` for a model of neither.
        model: settings from which the framework builds the model, as plain data.
        classes: names of the classes, in the order of the model's outputs.
        trained_on: summary of the training data, for people.
        steps: number of training steps; None if unknown.
        scores: finite scores on validation data by name.
        library_version: version of e3va that wrote the description.
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
        """Return the description as plain values for JSON."""
        return {
            "format_version": FORMAT_VERSION,
            **vars(self),
            "classes": list(self.classes),
            "library_version": self.library_version or __version__,
            "backbone": self.backbone.to_dict(),
            "trunk": asdict(self.trunk),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str) -> "AdapterConfig":
        """Read the result of :meth:`to_dict` from an untrusted file, ``source``.

        Raises:
            UserError: the format version is unknown, or an entry is missing or wrong.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{source} has adapter format version {version!r}: this e3va ({__version__}) reads "
                f"version {FORMAT_VERSION}; use the version of e3va that wrote it, or train again"
            )
        try:
            known = {f.name for f in fields(cls)} - {"backbone", "trunk"}
            plain = {key: value for key, value in data.items() if key in known}
            config = cls(
                backbone=BackboneConfig.from_dict(data["backbone"]),
                trunk=TrunkOrigin(**data["trunk"]),
                **{**plain, "classes": tuple(plain.get("classes", ()))},
            )
            config._check_types()
            return config
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else brief(error)
        except UserError as error:  # for example an adapter kind of a package that is not imported
            raise UserError(
                f"{source}: its backbone cannot be built here: {error.line}; import the package "
                "that registers the adapter kind, or copy the file again if it was altered"
            ) from None
        raise UserError(
            f"{source}: its description cannot be read ({reason}): it was altered, or another "
            "program wrote it; copy or download it again"
        )

    def _check_types(self) -> None:
        own = (self.trunk_prefix, self.framework, self.trained_on, self.library_version)
        if not all(isinstance(text, str) for text in (*own, self.trunk.source, *self.classes)):
            raise TypeError("names and classes are not all text")
        if not isinstance(self.model, dict):
            raise TypeError(f"model {self.model!r} is not an object")
        if not (self.steps is None or isinstance(self.steps, int)):
            raise TypeError(f"steps {self.steps!r} is not a whole number")
        if not _HEX.fullmatch(self.trunk.fingerprint):
            raise ValueError(f"fingerprint {self.trunk.fingerprint!r}")
        if not _STORED.fullmatch(self.trunk.stored):
            raise ValueError(f"stored {self.trunk.stored!r}")
        if not self.trunk_prefix.endswith("trunk."):
            raise ValueError(f"trunk_prefix {self.trunk_prefix!r}")

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> "AdapterConfig":
        """Read a description off the state dict of a whole model in the file ``source``.

        Raises:
            UserError: the tensors contain no E³VA backbone.
        """
        prefix = find_trunk(state)
        if prefix is None or not prefix.endswith("trunk."):
            raise UserError(
                f"{source} holds no E³VA backbone: expected a checkpoint of a whole model that was "
                "trained with a highway"
            )
        trunk = trunk_state(state, prefix)
        highway = prefix.removesuffix("trunk.") + "highway."
        own = {k[len(highway) :]: v for k, v in state.items() if k.startswith(highway)}
        levels = [LEVELS[s] for s in range(4) if f"stages.{s}.out_norm.weight" in own]
        preset = read_geometry(trunk, source)
        backbone = BackboneConfig(preset, read_highway(own, preset.embed_dim), tuple(levels))
        return cls(backbone, TrunkOrigin(UNKNOWN, fingerprint(trunk)), prefix)

    def check_backbone(
        self, backbone: E3VABackbone, source: str, backbone_only: bool = False
    ) -> None:
        """Check that the adapter, named ``source`` in messages, fits a backbone.

        With ``backbone_only`` the pyramid levels may differ in all but the last one, on which the
        number of adapters depends.

        Raises:
            UserError: the backbone has another setting; the message names all that differ.
        """
        ours, theirs = _flat(backbone.config), _flat(self.backbone)
        if same_geometry(backbone.config.preset, self.backbone.preset):
            theirs["preset"] = ours["preset"]
        if backbone_only and backbone.out_features[-1] == self.backbone.out_features[-1]:
            theirs["out_features"] = ours["out_features"]
        differ = [k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k)]
        if differ:
            pairs = ((k, theirs.get(k, "absent"), ours.get(k, "absent")) for k in differ)
            text = "; ".join(f"{name} {there}, not {here}" for name, there, here in pairs)
            raise UserError(
                f"{source} is for a backbone with other settings ({text}): build the model with "
                "those, or give another adapter"
            )

    def check_origin(self, trunk: SwinTrunk, source: str) -> None:
        """Check that a trunk holds the weights on which the adapter ``source`` was trained.

        Raises:
            UserError: the fingerprints differ; the message shows both.
        """
        found = origin_of(trunk)
        if found.fingerprint != self.trunk.fingerprint:
            raise UserError(
                f"{source} was trained on the trunk {self.trunk.source} (fingerprint "
                f"{self.trunk.short}), but this trunk is {found.source} (fingerprint "
                f"{found.short}): give the adapter's trunk, or set any_trunk=True (--any-trunk) to "
                "use this one"
            )


def _flat(config: BackboneConfig) -> dict[str, Any]:
    """Return all settings of a backbone as texts and plain values."""
    return {
        "preset": preset_name(config.preset) or str(config.preset),
        **config.highway.to_dict(),
        "out_features": ", ".join(config.out_features),
    }


def describe_model(model: nn.Module, /, **about: Any) -> AdapterConfig:
    """Describe the adapter in a model; ``about`` are further fields of :class:`AdapterConfig`.

    Raises:
        UserError: the model has no E³VA backbone, its trunk trains, or its adapters come from
            outside the registry.
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
