"""The config of a highway, and the recipes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..swin.trunk import TAPS
from ..utils.errors import UserError, check_choice, unknown_choice
from . import adapters  # noqa: F401  registers the adapter kinds
from .inside import QKV_WIDTH
from .registry import AFTER_SUBLAYERS, SETTINGS, AdapterKind, adapter_kinds, get_adapter_kind

FORMS = ("chain", "parallel")
DOWNSAMPLE_FORMS = ("offset", "direct")
PLACEMENTS = ("highway", "inside")
OUTSIDE = "(outside)"  # the adapter kind of modules that come from outside the registry


@dataclass(frozen=True)
class HighwayConfig:
    """All settings of a highway.

    They can be combined freely. Those without effect are set to their defaults: without adapters
    form, taps, downsample, shared and placement, with adapters inside the trunk the first four, and
    with a side network (see :class:`e3va.highway.registry.AdapterKind`) form and shared.

    Attributes:
        adapter: the adapter kind, a name in the registry; None for no adapters.
        form: ``"chain"`` or ``"parallel"``, see :class:`e3va.Highway`.
        taps: ``"block"``, ``"residual"`` or ``"sublayer"``, see :meth:`e3va.SwinTrunk.stages`.
        downsample: ``"offset"`` or ``"direct"``, see :class:`e3va.Highway`.
        shared: whether the blocks of a stage share one adapter, as layers do in Tied-LoRA (arXiv
            2311.09578). For the same number of parameters its rank is larger.
        placement: ``"highway"``, or ``"inside"`` for adapters inside the frozen trunk, where their
            papers put them: the baseline that backpropagates through the trunk.
        train_trunk: whether the trunk trains, as in full fine-tuning; only without adapters.
        options: options of the adapter kind by name; an option that is absent has its default.

    Raises:
        UserError: an unknown setting, kind or option; the message names the valid ones.
    """

    adapter: str | None = "conv"
    form: str = "chain"
    taps: str = "block"
    downsample: str = "offset"
    shared: bool = False
    placement: str = "highway"
    train_trunk: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        choices = {"form": FORMS, "taps": TAPS, "downsample": DOWNSAMPLE_FORMS}
        for name, valid in {**choices, "placement": PLACEMENTS}.items():
            check_choice(f"highway {name}", getattr(self, name), valid)
        for name in ("shared", "train_trunk"):
            if not isinstance(getattr(self, name), bool):
                value = getattr(self, name)
                raise UserError(f"highway {name} {value!r}: expected true or false")
        self._check_kind()
        for name in self.without_effect:
            object.__setattr__(self, name, getattr(type(self), name))
        if self.train_trunk and self.adapter is not None:
            raise UserError(
                f"highway with adapter {self.adapter!r} and train_trunk true: expected one of the "
                "two; set adapter to null, or train_trunk to false"
            )
        known = get_adapter_kind(self.adapter).defaults if self._registered else ()
        for name in self.options:
            if name not in known:
                kind = f" with adapter {self.adapter!r}" if self.adapter else " without adapters"
                what = f"a highway{kind} has no setting"
                raise unknown_choice(what, name, (*SETTINGS, *known))
        object.__setattr__(self, "options", dict(self.options))

    def _check_kind(self) -> None:
        if self.inside and not self.points and self._registered:
            inside = [name for name, kind in adapter_kinds().items() if kind.inside]
            raise UserError(
                f"highway adapter {self.adapter!r} with placement 'inside': it cannot stand inside "
                f"a trunk; set placement to 'highway', or adapter to one of {', '.join(inside)}"
            )
        if self.shared and "frozen" in self.given and not self.inside:
            raise UserError(
                f"highway adapter {self.adapter!r} with shared true: each adapter belongs to a "
                "matrix of its own block; set shared to false"
            )

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Names of the settings that have no effect in this config."""
        if self.adapter is None:
            return ("form", "taps", "downsample", "shared", "placement")
        if self.inside:
            return ("form", "taps", "downsample", "shared")
        return ("form", "shared") if "tap_count" in self.given else ()

    @property
    def given(self) -> tuple[str, ...]:
        """Arguments that the highway gives to the adapters, see :class:`AdapterKind`."""
        return get_adapter_kind(self.adapter).given if self._registered else ()

    @property
    def inside(self) -> bool:
        """Whether the adapters stand inside the trunk."""
        return self.placement == "inside"

    @property
    def points(self) -> Mapping[str, str]:
        """Where adapters inside the trunk stand, see :class:`AdapterKind`."""
        return get_adapter_kind(self.adapter).inside if self._registered else AFTER_SUBLAYERS

    @property
    def _registered(self) -> bool:
        return self.adapter not in (None, OUTSIDE)

    @property
    def recipe(self) -> str:
        """Name of the recipe with these settings and most of these options, or ``"custom"``."""
        fits = [
            (len(known.options), name)
            for name, known in RECIPES.items()
            if replace(self, options={}) == replace(known, options={})
            and known.options.items() <= self.options.items()
        ]
        return max(fits, default=(0, "custom"))[1]

    def changed(self, **settings: Any) -> "HighwayConfig":
        """Return the config with changes; another adapter kind starts from its own defaults."""
        changes = {name: value for name, value in settings.items() if name in SETTINGS}
        options = {name: value for name, value in settings.items() if name not in SETTINGS}
        if changes.get("adapter", self.adapter) == self.adapter:
            options = {**self.options, **options}
        return replace(self, **changes, options=options)

    def complete(self, embed_dim: int) -> "HighwayConfig":
        """Return the config with a value for every option; some defaults depend on C_0."""
        if not self._registered:
            return self
        options = get_adapter_kind(self.adapter).complete(self.options, embed_dim)
        return replace(self, options=options)

    def adapter_factory(self, embed_dim: int) -> Callable[[int], nn.Module] | None:
        """Return the function ``dim -> adapter``; None for a highway without adapters."""
        if self.adapter == OUTSIDE:
            raise UserError(
                f"highway adapter {OUTSIDE!r}: the adapters come from outside the registry; give "
                "make_adapter, or register their kind with e3va.register_adapter_kind"
            )
        if self.adapter is None:
            return None
        options = self.complete(embed_dim).options
        return partial(get_adapter_kind(self.adapter).module, **options)

    def __str__(self) -> str:
        if self.adapter is None:
            return self.recipe
        hidden = ("recipe", "train_trunk")
        settings = [f"{k} {v}" for k, v in self.to_dict().items() if k not in hidden]
        return f"{self.recipe} ({', '.join(settings)})"

    def to_dict(self) -> dict[str, Any]:
        """Return one flat dict of plain values, from which :func:`highway_config` restores it.

        It holds ``placement`` only if that is ``"inside"``: adapter files that were written before
        the setting existed have none.
        """
        recipe = {} if self.recipe == "custom" else {"recipe": self.recipe}
        settings = {name: getattr(self, name) for name in SETTINGS}
        if not self.inside:
            del settings["placement"]
        return {**recipe, **settings, **self.options}


# The named combinations of settings. "e3va_wide" trains up to 5% of the backbone; "frozen" and
# "full" are baselines without adapters.
RECIPES: dict[str, HighwayConfig] = {
    "e3va_chain": HighwayConfig(),
    "e3va_wide": HighwayConfig("wide_conv"),
    "e3va": HighwayConfig("dual_low_rank", form="parallel", taps="sublayer", downsample="direct"),
    "frozen": HighwayConfig(adapter=None),
    "full": HighwayConfig(adapter=None, train_trunk=True),
}
DEFAULT_RECIPE = "e3va_chain"


def highway_config(recipe: str = DEFAULT_RECIPE, **settings: Any) -> HighwayConfig:
    """Build a config from a recipe and changes to it.

    Example::

        highway_config("e3va_chain", rank=24, taps="residual")

    Args:
        recipe: name in :data:`RECIPES`.
        settings: settings of :class:`HighwayConfig`, and options of its adapter kind. The recipe's
            options apply only to the recipe's own adapter kind.

    Raises:
        UserError: an unknown recipe, setting or option, or a wrong value.
    """
    check_choice("recipe", recipe, RECIPES)
    return RECIPES[recipe].changed(**settings)


def as_highway_config(config: str | Mapping[str, Any] | HighwayConfig) -> HighwayConfig:
    """Return a config from a recipe's name, a mapping for :func:`highway_config`, or a config."""
    if isinstance(config, HighwayConfig):
        return config
    if isinstance(config, str):
        return highway_config(config)
    if isinstance(config, Mapping) and all(isinstance(name, str) for name in config):
        return highway_config(**config)
    raise UserError(f"highway {config!r}: expected a recipe's name or a mapping of settings")


def read_highway(tensors: Mapping[str, Tensor], embed_dim: int) -> HighwayConfig:
    """Read a complete config off the tensors of a highway, its state dict.

    Settings that leave no trace there come from the first recipe with the same adapter kind.
    """
    inside = re.compile(r"stages\.0\.inside\.0\.(\w+)\.")
    point = next((match[1] for name in tensors if (match := inside.match(name))), None)
    prefixes = (f"stages.0.inside.0.{point}.", "stages.0.mlp.0.", "stages.0.side.")
    first: dict[str, Tensor] = {}
    for prefix in prefixes:
        first |= {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if not first:
        return RECIPES["frozen"]
    fitting = {
        kind.name: options
        for kind in adapter_kinds().values()
        if (options := _fitting_options(kind, first, embed_dim, point)) is not None
    }
    if not fitting:
        raise UserError(
            "the highway's adapters are of no registered kind: expected one of "
            f"{', '.join(adapter_kinds())}; register their kind before the file is read"
        )
    # Two kinds may have the same module: the one that has these options by default is likelier.
    name = max(fitting, key=lambda n: fitting[n] == get_adapter_kind(n).complete({}, embed_dim))
    base = next((r for r in RECIPES.values() if r.adapter == name), HighwayConfig(name))
    if point:
        return replace(base, options=fitting[name], placement="inside")
    if "tap_count" in get_adapter_kind(name).given:
        return replace(base, options=fitting[name])
    sublayers = any(key.startswith("stages.0.msa.") for key in tensors)
    if sublayers != (base.taps != "block"):
        base = replace(base, taps="residual" if sublayers else "block")
    shared = not any(re.match(r"stages\.\d+\.mlp\.1\.", key) for key in tensors)
    return replace(base, options=fitting[name], shared=shared)


def _fitting_options(
    kind: AdapterKind, tensors: Mapping[str, Tensor], embed_dim: int, point: str | None
) -> dict[str, Any] | None:
    """Return the options with which a kind's adapter has these tensors; None if there are none."""
    try:
        options = kind.complete(kind.read_options(tensors) if kind.read_options else {}, embed_dim)
        with torch.device("meta"):  # allocates nothing and draws no random numbers
            given = {"outputs": QKV_WIDTH * embed_dim} if point == "qkv" else {}
            if "tap_count" in kind.given:
                given["tap_count"] = _taps_of_side_network(tensors)
            state = kind.module(embed_dim, **options, **given).state_dict()
    except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, UserError):
        return None
    same = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in tensors.items()}
    return options if same else None


def _taps_of_side_network(tensors: Mapping[str, Tensor]) -> int:
    """Return for how many taps a side network has modules: it numbers them in lists."""
    numbers = (re.match(r"\w+\.(\d+)\.", name) for name in tensors)
    return 1 + max(int(match[1]) for match in numbers if match)
