"""The registry of fast forms: hand-written passes over the adapters of one stage."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .token_map import TokenMap

# (adapters, taps [B, T, C], shape and types, h or None) -> h, as HighwayStage.forward computes it.
FastForm = Callable[[Sequence[nn.Module], Sequence[Tensor], TokenMap, Tensor | None], Tensor]

_FAST_FORMS: dict[tuple[str, type[nn.Module]], FastForm] = {}


def register_fast_form(form: str, module: type[nn.Module], run: FastForm) -> None:
    """Register the fast form of a stage with adapters of one class.

    Args:
        form: ``"chain"`` or ``"parallel"``.
        module: class of the adapters. Its subclasses are not included, since they may compute
            something else.
        run: function that computes the stage, with gradients for the adapters' parameters.
    """
    _FAST_FORMS[form, module] = run


def find_fast_form(form: str, adapters: Sequence[nn.Module]) -> FastForm | None:
    """Return the fast form for a stage's adapters; None if there is none."""
    classes = {type(adapter) for adapter in adapters}
    return _FAST_FORMS.get((form, classes.pop())) if len(classes) == 1 else None
