"""The registry of adapter kinds."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..utils.errors import UserError, check_choice

# Names of a highway's own settings, which stand beside the options in one flat dict.
SETTINGS = ("adapter", "form", "taps", "downsample", "shared", "placement", "train_trunk")
# Arguments of a kind's module that are no options: the highway gives them, see AdapterKind.
GIVEN = ("outputs", "tap_count", "frozen")
_LARGEST = 1024  # A larger whole number is a mistake, or a file that would exhaust the memory.
_EXPECTED = {bool: "true or false", float: "a finite number", str: "a text"}


# Where an adapter inside the trunk may stand: the value of a block to which it adds, and what it
# reads. See :func:`e3va.swin.modules.unchanged` for both.
POINTS = ("qkv", "attended", "after_msa", "fc1", "projected", "after_mlp")
SOURCES = ("value", "normed", "stream")
AFTER_SUBLAYERS = {"attended": "value", "projected": "value"}
ON_STREAM = {"after_msa": "value", "after_mlp": "value"}


@dataclass(frozen=True)
class AdapterKind:
    """An adapter kind: a module with its options, their defaults and its source.

    Attributes:
        name: the name by which configs select the kind.
        module: a class or function ``(dim, **options) -> nn.Module``. The module maps a tap
            [B, T, C], H and W to [B, T, C]. One with an argument ``tap_count`` is a side network:
            there is one for each stage, and it maps the list of all taps, h_s^in (None for zero), H
            and W to h_s. One with an argument ``frozen`` is called with the
            :class:`e3va.highway.frozen_matrix.FrozenMatrix` of its block.
        source: the paper that describes the adapter.
        defaults: the default of every option, or a function that computes it from C_0, the
            channels of the first stage.
        read_options: a function that reads the options off one adapter's state dict; None for
            options that then have their defaults.
        inside: where adapters stand with ``placement="inside"``: for some of :data:`POINTS` one of
            :data:`SOURCES`; empty for a kind that cannot stand there. At ``"qkv"`` and ``"fc1"``
            ``module`` is called with ``outputs``, the width of the result.
        given: those of :data:`GIVEN` that ``module`` has.
    """

    name: str
    module: Callable[..., nn.Module]
    source: str
    defaults: Mapping[str, Any]
    read_options: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None
    inside: Mapping[str, str] = field(default_factory=lambda: AFTER_SUBLAYERS)
    given: tuple[str, ...] = ()

    def complete(self, options: Mapping[str, Any], embed_dim: int) -> dict[str, Any]:
        """Check the options, and return a value for every option of the kind."""
        result = {}
        for name, default in self.defaults.items():
            default = default(embed_dim) if callable(default) else default
            result[name] = _checked(name, options.get(name, default), default)
        return result


def _checked(name: str, value: Any, default: Any) -> Any:
    kind, expected = type(default), _EXPECTED.get(type(default))
    if kind is float and type(value) is int:
        value = float(value)
    valid = type(value) is kind and (kind is not float or math.isfinite(value))
    if kind is int:
        least = min(1, default)
        valid = valid and least <= value <= _LARGEST
        expected = f"a whole number from {least} to {_LARGEST}"
    if not valid:
        raise UserError(f"highway option {name}={value!r}: expected {expected}")
    return value


_KINDS: dict[str, AdapterKind] = {}


def register_adapter_kind(
    name: str,
    module: Callable[..., nn.Module],
    *,
    source: str,
    defaults: Mapping[str, Any] | None = None,
    read_options: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None,
    inside: Mapping[str, str] = AFTER_SUBLAYERS,
) -> None:
    """Register an adapter kind; see :class:`AdapterKind` for the arguments.

    The options are the arguments of ``module`` after the first one, except :data:`GIVEN`. Their
    defaults are numbers, texts or truth values; ``defaults`` replaces those in the signature. A new
    file in ``e3va/highway/adapters`` that calls this function needs no change in another file::

        register_adapter_kind("linear", LinearAdapter, source="arXiv 1902.00751")

    Raises:
        ValueError: the name is taken; an option has no default, a default of another type, or the
            name of a setting; ``defaults`` names an option that ``module`` lacks; or ``inside``
            names no point or source.
    """
    if name in _KINDS:
        raise ValueError(f"adapter kind {name!r} is registered twice")
    _, *parameters = inspect.signature(module).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in GIVEN}
    given = tuple(p.name for p in parameters if p.name in GIVEN)
    for option in defaults or {}:
        if option not in options:
            raise ValueError(f"adapter kind {name!r}: {module} has no argument {option!r}")
    options.update(defaults or {})
    for option, default in options.items():
        if option in (*SETTINGS, "recipe"):
            raise ValueError(f"adapter kind {name!r}: {option!r} is a setting of every highway")
        valid = callable(default) or isinstance(default, bool | int | float | str)
        if default is inspect.Parameter.empty or not valid:
            raise ValueError(
                f"adapter kind {name!r}: option {option!r} needs a default that is a number, a "
                "text or a truth value"
            )
    for point, source_of_value in inside.items():
        if point not in POINTS or source_of_value not in SOURCES:
            raise ValueError(f"adapter kind {name!r}: inside {point!r}: {source_of_value!r}")
    _KINDS[name] = AdapterKind(name, module, source, options, read_options, inside, given)


def adapter_kinds() -> dict[str, AdapterKind]:
    """Return all registered kinds by name."""
    return dict(_KINDS)


def get_adapter_kind(name: str) -> AdapterKind:
    """Return a kind by its name; raise a UserError if no kind has that name."""
    check_choice("adapter kind", name, _KINDS)
    return _KINDS[name]
