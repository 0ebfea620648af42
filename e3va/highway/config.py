"""The config of a highway, and the recipes."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..swin.trunk import TAPS
from ..utils.errors import UserError
from . import adapters  # noqa: F401  registers the adapter kinds
from .registry import adapter_kinds, get_adapter_kind

FORMS = ("chain", "parallel")
DOWNSAMPLE_FORMS = ("offset", "direct")
OUTSIDE = "(outside)"  # adapters of a module factory that is not in the registry
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class HighwayConfig:
    """All settings of a highway; every combination is valid.

    Attributes:
        adapter: the adapter kind, a name in the registry; None for no adapters.
        form: ``"chain"`` or ``"parallel"``, see :class:`e3va.highway.highway.Highway`.
        taps: ``"block"``, ``"residual"`` or ``"sublayer"``, see
            :meth:`e3va.swin.trunk.SwinTrunk.stages`.
        downsample: ``"offset"`` or ``"direct"``, see :class:`e3va.highway.highway.Highway`.
        train_trunk: whether the trunk trains too, as in full fine-tuning.
        options: options of the adapter kind by name; those that are absent have their defaults.

    Raises:
        UserError: an unknown setting, kind or option; the message names the valid ones.
    """

    adapter: str | None = "conv"
    form: str = "chain"
    taps: str = "block"
    downsample: str = "offset"
    train_trunk: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("form", FORMS), ("taps", TAPS), ("downsample", DOWNSAMPLE_FORMS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"highway {name} {getattr(self, name)!r}: expected one of {', '.join(known)}"
                )
        if not isinstance(self.train_trunk, bool):
            raise UserError(f"highway train_trunk {self.train_trunk!r}: expected true or false")
        if self.train_trunk and self.adapter is not None:
            raise UserError("a highway with adapters beside a trunk that trains: expected one")
        if self.adapter in (None, OUTSIDE):
            for option in self.options:
                raise UserError(f"highway option {option!r}: there are no adapters of the registry")
        else:
            get_adapter_kind(self.adapter).check_names(self.options)

    @property
    def recipe(self) -> str:
        """The name of the recipe with these settings, whatever its options; else ``"custom"``."""
        plain = replace(self, options={})
        return next((name for name, known in RECIPES.items() if known == plain), "custom")

    def complete(self, embed_dim: int) -> "HighwayConfig":
        """Return the config with a value for every option of its adapter kind.

        Args:
            embed_dim: channels C_0 of the first stage, on which some defaults depend.

        Raises:
            UserError: an option of another type or out of range.
        """
        if self.adapter in (None, OUTSIDE):
            return self
        options = get_adapter_kind(self.adapter).complete(self.options, embed_dim)
        return replace(self, options=options)

    def adapter_factory(self, embed_dim: int) -> Callable[[int], nn.Module] | None:
        """Return the function ``dim -> adapter``; None for a highway without adapters."""
        if self.adapter in (None, OUTSIDE):
            return None
        options = self.complete(embed_dim).options
        return partial(get_adapter_kind(self.adapter).module, **options)

    def __str__(self) -> str:
        settings = {k: v for k, v in self.to_dict().items() if k not in ("recipe", "train_trunk")}
        if self.adapter is None:
            settings = {}
        text = ", ".join(f"{name} {value}" for name, value in settings.items())
        return f"{self.recipe} ({text})" if text else self.recipe

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict of plain values, which :func:`highway_config` takes back."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        recipe = {} if self.recipe == "custom" else {"recipe": self.recipe}
        return {**recipe, **own, **self.options}


# The named combinations of settings. "frozen" and "full" are baselines without adapters.
RECIPES: dict[str, HighwayConfig] = {
    "e3va_chain": HighwayConfig(),
    "e3va": HighwayConfig("dual_low_rank", form="parallel", taps="sublayer", downsample="direct"),
    "frozen": HighwayConfig(adapter=None),
    "full": HighwayConfig(adapter=None, train_trunk=True),
}
DEFAULT_RECIPE = "e3va_chain"
_SETTINGS = tuple(f.name for f in fields(HighwayConfig) if f.name != "options")


def highway_config(recipe: str = DEFAULT_RECIPE, **settings: Any) -> HighwayConfig:
    """Build a config from a recipe and changes to it::

        highway_config("e3va_chain", rank=24, taps="residual")

    Args:
        recipe: a name in :data:`RECIPES`.
        settings: settings of :class:`HighwayConfig`, and options of its adapter kind. With another
            ``adapter`` than the recipe's, options of the recipe's adapter are dropped.

    Raises:
        UserError: an unknown recipe, setting or option, or a wrong value.
    """
    if recipe not in RECIPES:
        nearest = difflib.get_close_matches(str(recipe), RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"recipe {recipe!r}: expected one of {', '.join(RECIPES)}{hint}")
    base = RECIPES[recipe]
    changes = {name: value for name, value in settings.items() if name in _SETTINGS}
    options = {name: value for name, value in settings.items() if name not in _SETTINGS}
    return replace(base, **changes, options=options)


def as_highway_config(config: "str | Mapping[str, Any] | HighwayConfig") -> HighwayConfig:
    """Return a config from a recipe's name, a mapping for :func:`highway_config`, or itself."""
    if isinstance(config, HighwayConfig):
        return config
    if isinstance(config, str):
        return highway_config(config)
    if isinstance(config, Mapping) and all(isinstance(name, str) for name in config):
        return highway_config(**config)
    raise UserError(f"highway {config!r}: expected a recipe's name or a mapping of settings")


def from_version_1(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the settings that files of format version 1 hold.

    Args:
        settings: ``method``, ``rank``, ``reduction``, ``taps`` and ``downsample``. The method
            ``"e3va"`` is today's recipe ``e3va_chain``, and ``"paper"`` is today's ``e3va``.

    Returns:
        arguments of :func:`highway_config`.

    Raises:
        ValueError: an unknown method.
    """
    names = {"e3va": "e3va_chain", "paper": "e3va", "frozen": "frozen", "full": "full"}
    method = settings.get("method", "e3va")
    if method not in names:
        raise ValueError(f"method {method!r}")
    result = {"recipe": names[method]}
    kept = {"e3va": ("rank", "taps", "downsample"), "paper": ("rank", "reduction", "taps")}
    kept["paper"] += ("downsample",)
    for name in kept.get(method, ()):
        if settings.get(name) is not None:
            result[name] = settings[name]
    return result


def read_highway(tensors: Mapping[str, Tensor]) -> HighwayConfig:
    """Read a config off the tensors of a highway.

    Settings that leave no trace in the tensors are those of the first recipe that fits.

    Args:
        tensors: the highway's state dict.

    Raises:
        UserError: the adapters are of no registered kind.
    """
    first = {n.split(".", 4)[-1]: t for n, t in tensors.items() if n.startswith("stages.0.mlp.0.")}
    if not first:
        return RECIPES["frozen"]
    for kind in adapter_kinds().values():
        if kind.read_options is None:
            continue
        try:
            options = kind.read_options(first)
            names = kind.module(first_dim(tensors), **options).state_dict().keys()
        except (LookupError, ValueError, ZeroDivisionError, UserError):
            continue
        if names == first.keys():
            recipes = (known for known in RECIPES.values() if known.adapter == kind.name)
            base = next(recipes, HighwayConfig(kind.name))
            return replace(base, options=options)
    raise UserError(
        "the highway's adapters are of no registered kind: expected one of those of e3va"
    )


def first_dim(tensors: Mapping[str, Tensor]) -> int:
    """Return the channels of the first stage, from the pyramid norms of a highway's state dict."""
    for stage in range(4):
        norm = tensors.get(f"stages.{stage}.out_norm.weight")
        if norm is not None:
            return norm.shape[0] >> stage
    raise LookupError("out_norm.weight")
