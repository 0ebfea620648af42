"""Learning rates by parameter, for Detectron2's ``get_default_optimizer_params``."""

from collections.abc import Callable


def highway_lr_factor(adapters: float) -> Callable[[str], float]:
    """A ``lr_factor_func`` that multiplies the adapters' learning rate.

    Adapters start from zero and want a higher rate than the heads and the pyramid norms.
    """

    def factor(name: str) -> float:
        return adapters if ".highway." in name and ".out_norm." not in name else 1.0

    return factor
