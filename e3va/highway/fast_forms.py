"""The registry of fast forms: hand-written passes over the adapters of one stage."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .token_map import TokenMap

# (adapters, taps, map, h) -> h, as HighwayStage.forward computes it module by module.
FastForm = Callable[[Sequence[nn.Module], Sequence[Tensor], TokenMap, Tensor | None], Tensor]

_FAST_FORMS: dict[tuple[str, type[nn.Module]], FastForm] = {}


def register_fast_form(form: str, module: type[nn.Module], run: FastForm) -> None:
    """Register the fast form of a stage whose adapters are all of class ``module``.

    Args:
        form: ``"chain"`` or ``"parallel"``.
        module: the adapters' class. Subclasses may compute something else and are not included.
        run: the function that computes the stage, with gradients for the adapters' parameters.
    """
    _FAST_FORMS[form, module] = run


def find_fast_form(form: str, adapters: Sequence[nn.Module]) -> FastForm | None:
    """Return the fast form of a stage's adapters; None if there is none."""
    classes = {type(adapter) for adapter in adapters}
    return _FAST_FORMS.get((form, classes.pop())) if len(classes) == 1 else None
