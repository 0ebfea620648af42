"""The registry of adapter kinds."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..utils.errors import UserError

_LARGEST = 1024  # of a whole number; no adapter comes near, and a file must not exhaust the memory


@dataclass(frozen=True)
class AdapterKind:
    """An adapter kind: a module with its options, their defaults and its source.

    Attributes:
        name: the name by which configs select the kind.
        module: a class or function ``(dim, **options) -> nn.Module``. The module maps a tap
            [B, T, C], H and W to [B, T, C].
        source: the paper that describes the adapter.
        defaults: the default of every option; a function of C_0 for an option whose default
            depends on the channels of the first stage.
        read_options: a function that reads the options off the tensors of one adapter, by their
            names in its state dict; None if the tensors do not tell.
    """

    name: str
    module: Callable[..., nn.Module]
    source: str
    defaults: Mapping[str, Any]
    read_options: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None

    def complete(self, options: Mapping[str, Any], embed_dim: int) -> dict[str, Any]:
        """Return all options, with the default for each one that ``options`` lacks.

        Args:
            options: the options that were given, by name.
            embed_dim: channels C_0 of the first stage.

        Raises:
            UserError: an unknown option, or a value of another type or out of range.
        """
        self.check_names(options)
        result = {}
        for name, default in self.defaults.items():
            default = default(embed_dim) if callable(default) else default
            result[name] = self._checked(name, options.get(name, default), default)
        return result

    def check_names(self, options: Mapping[str, Any]) -> None:
        """Raise a UserError that names the nearest option for each unknown name."""
        for name in options:
            if name not in self.defaults:
                nearest = difflib.get_close_matches(str(name), self.defaults, n=1, cutoff=0.4)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise UserError(
                    f"highway option {name!r}: adapter kind {self.name!r} has the options "
                    f"{', '.join(self.defaults) or '(none)'}{hint}"
                )

    def _checked(self, name: str, value: Any, default: Any) -> Any:
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        ok = type(value) is type(default)
        if ok and isinstance(value, int) and not isinstance(value, bool):
            ok = 0 < value <= _LARGEST
        if ok and isinstance(value, float):
            ok = math.isfinite(value)
        if not ok:
            expected = {int: f"a whole number from 1 to {_LARGEST}", float: "a finite number"}
            kind = expected.get(type(default), type(default).__name__)
            raise UserError(f"highway option {name}={value!r}: expected {kind}")
        return value


_KINDS: dict[str, AdapterKind] = {}


def register_adapter_kind(
    name: str,
    module: Callable[..., nn.Module],
    *,
    source: str,
    defaults: Mapping[str, Any] | None = None,
    read_options: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None,
) -> None:
    """Register an adapter kind.

    The options are the arguments of ``module`` after the first one, with their defaults. A file in
    ``e3va/highway/adapters`` that calls this function needs no other change::

        register_adapter_kind("linear", LinearAdapter, source="arXiv 1902.00751")

    Args:
        name: see :class:`AdapterKind`, as the other arguments.
        defaults: defaults in place of those in the signature; a function of C_0 where the default
            depends on the channels of the first stage.

    Raises:
        ValueError: the name is taken, or an option has no default.
    """
    if name in _KINDS:
        raise ValueError(f"adapter kind {name!r} is registered twice")
    parameters = list(inspect.signature(module).parameters.values())[1:]
    known = {p.name: (defaults or {}).get(p.name, p.default) for p in parameters}
    missing = [option for option, default in known.items() if default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"adapter kind {name!r}: {', '.join(missing)} has no default")
    _KINDS[name] = AdapterKind(name, module, source, known, read_options)


def adapter_kinds() -> dict[str, AdapterKind]:
    """Return all registered kinds by name."""
    return dict(_KINDS)


def get_adapter_kind(name: str) -> AdapterKind:
    """Return a kind by its name.

    Raises:
        UserError: no kind has that name; the message names the nearest ones.
    """
    if name not in _KINDS:
        nearest = difflib.get_close_matches(str(name), _KINDS, n=1, cutoff=0.4)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"adapter kind {name!r}: expected one of {', '.join(sorted(_KINDS))}{hint}")
    return _KINDS[name]
