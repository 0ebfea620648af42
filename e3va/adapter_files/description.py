"""The description of an adapter: what it was trained on, and what it fits."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from .._version import __version__
from ..backbone import (
    LEVELS,
    METHODS,
    BackboneSettings,
    E3VABackbone,
    complete,
    find_backbone,
    trunk_prefix,
)
from ..swin.presets import SwinPreset, preset_name, same_geometry
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from ..weights.loading import find_trunk, read_geometry, trunk_state
from ..weights.origin import UNKNOWN, TrunkOrigin, fingerprint, origin_of

FORMAT_VERSION = 1
_STORED = re.compile(r"(int8 )?(fp32|bf16|fp16)(, (int8 )?(fp32|bf16|fp16)){0,8}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AdapterConfig:
    """What ``adapter_config.json`` says.

    Attributes:
        backbone: the settings of the backbone.
        trunk: the pretrained weights that it was trained on.
        trunk_prefix: what the trunk's names begin with in the model's state dict.
        host: ``"torchvision"``, ``"detectron2"``, or ``""`` for a model of neither.
        model: by what the host builds the model; plain data, never a callable's name.
        classes: names, in the order of the model's outputs.
        trained_on: for people.
        steps: of training; None where it is not known.
        scores: on validation data, by their names; what is no number is left out.
        library_version: of e3va, that wrote it.
    """

    backbone: BackboneSettings
    trunk: TrunkOrigin
    trunk_prefix: str
    host: str = ""
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
        own = self.backbone
        listed = {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        name = preset_name(own.preset)
        return {
            "format_version": FORMAT_VERSION,
            **listed,
            "library_version": self.library_version or __version__,
            "backbone": {
                "preset": name or "",
                "geometry": {
                    k: list(v) if isinstance(v, tuple) else v for k, v in asdict(own.preset).items()
                },
                "method": own.method,
                "rank": own.rank,
                "bottleneck_reduction": own.reduction,
                "taps": own.taps,
                "downsample": own.downsample,
                "out_features": list(own.out_features),
            },
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
        if version != FORMAT_VERSION:
            raise UserError(
                f"{source} has adapter format version {version!r}: this e3va "
                f"({__version__}) reads version {FORMAT_VERSION}; update e3va or train again"
            )
        try:
            known = {f.name for f in fields(cls)} - {"backbone", "trunk"}
            plain = {key: value for key, value in data.items() if key in known}
            config = cls(
                backbone=_backbone(data["backbone"]),
                trunk=TrunkOrigin(**data["trunk"]),
                **{**plain, "classes": tuple(plain.get("classes", ()))},
            )
            config._check_types()
            return config
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(
                f"{source}: its description cannot be read ({what}): it was altered, or another "
                "program wrote it; copy or download it again"
            ) from None

    def _check_types(self) -> None:
        texts = (self.trunk_prefix, self.host, self.trained_on, self.trunk.source, *self.classes)
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
        settings = _read_settings(own, read_geometry(trunk, source))
        return cls(settings, TrunkOrigin(UNKNOWN, fingerprint(trunk)), prefix)

    def check_backbone(self, backbone: E3VABackbone, source: str) -> None:
        """Check that the adapter is one for ``backbone``.

        Raises:
            UserError: they differ in a setting; the text says in which.
        """
        ours, theirs = vars(backbone.settings), vars(self.backbone)
        differ = [k for k in ours if ours[k] != theirs[k] and k != "preset"]
        if ours["method"] != "paper" and "reduction" in differ:
            differ.remove("reduction")  # nothing of it depends on that
        if not same_geometry(ours["preset"], theirs["preset"]):
            differ.insert(0, "preset")
        if differ:
            said = "; ".join(f"{k} {_say(theirs[k])}, not {_say(ours[k])}" for k in differ)
            raise UserError(
                f"{source} is for a backbone with other settings ({said}): build the model with "
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


def _backbone(data: Mapping[str, Any]) -> BackboneSettings:
    geometry = {k: tuple(v) if isinstance(v, list) else v for k, v in data["geometry"].items()}
    preset = SwinPreset(**geometry)
    sides = (preset.embed_dim, preset.window, *preset.depths, *preset.num_heads)
    counts = (*sides, data["rank"], data["bottleneck_reduction"])
    # No Swin comes near; a hostile file must not make us reserve the machine's memory.
    if not all(isinstance(n, int) and 0 < n <= 1024 for n in counts) or len(preset.depths) != 4:
        raise ValueError("sizes out of range")
    if len(preset.num_heads) != 4 or not 0 < preset.mlp_ratio <= 16:
        raise ValueError("sizes out of range")
    if not 0 <= preset.pretrain_size <= 4096:
        raise ValueError("sizes out of range")
    if data["method"] not in METHODS or not set(data["out_features"]) <= {*LEVELS}:
        raise ValueError("method or out_features")
    own = complete(data["method"], preset, data["rank"], data["taps"], data["downsample"])
    return BackboneSettings(
        preset,
        data["method"],
        own.rank,
        data["bottleneck_reduction"],
        own.taps,
        own.downsample,
        tuple(data["out_features"]),
    )


def _read_settings(highway: Mapping[str, Tensor], preset: SwinPreset) -> BackboneSettings:
    rank, reduction, method = None, 4, "frozen"
    for name, value in highway.items():
        if name.endswith(".down.weight"):
            method, rank = "e3va", value.shape[0]
        elif name.endswith(".d1.weight"):
            method, rank = "paper", value.shape[0]
        elif name.endswith("stages.0.mlp.0.d2.weight"):
            reduction = preset.embed_dim // value.shape[0]
    own = complete(method, preset, rank)
    levels = [LEVELS[s] for s in range(4) if f"stages.{s}.out_norm.weight" in highway]
    return BackboneSettings(
        preset, method, own.rank, reduction, own.taps, own.downsample, tuple(levels)
    )


def describe_model(model: nn.Module, /, **about: Any) -> AdapterConfig:
    """The description of the adapter in a model; ``about`` as :class:`AdapterConfig` has it.

    Raises:
        UserError: the model has no E³VA backbone, or its trunk trains.
    """
    _, backbone = find_backbone(model)
    if not backbone.trunk.frozen:
        raise UserError(
            "the trunk is trained too (method='full'): its weights are part of the result, so save "
            "the whole model"
        )
    return AdapterConfig(backbone.settings, origin_of(backbone.trunk), trunk_prefix(model), **about)
