"""Learning rates by parameter, for Detectron2's ``get_default_optimizer_params``."""

from collections.abc import Callable


def highway_lr_factor(adapters: float) -> Callable[[str], float]:
    """Return a ``lr_factor_func`` that multiplies the learning rate of the adapters.

    Adapters start from zero and need a higher rate than the heads and the pyramid norms.
    """

    def factor(name: str) -> float:
        return adapters if ".highway." in name and ".out_norm." not in name else 1.0

    return factor
