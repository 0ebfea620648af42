"""Checks of the options that several adapter kinds have."""

from ..utils.errors import UserError


def check_rank(rank: int, most: int | None = None) -> None:
    """Raise a :class:`UserError` if a rank is below 1 or above ``most``."""
    if rank < 1 or (most is not None and rank > most):
        limit = "" if most is None else f" and at most {most}, the smaller width of its matrices"
        raise UserError(f"adapter rank {rank}: expected a whole number of at least 1{limit}")


def check_divisor(name: str, value: int, dim: int) -> None:
    """Raise a :class:`UserError` if an option is no divisor of the tap's channels."""
    if value < 1 or dim % value:
        raise UserError(f"adapter {name} {value}: expected a divisor of the {dim} channels")


def check_kernel(kernel: int) -> None:
    """Raise a :class:`UserError` if the side of a convolution is not odd."""
    if kernel < 1 or kernel % 2 == 0:
        raise UserError(f"adapter kernel {kernel}: expected an odd number")


def check_dropout(dropout: float) -> None:
    """Raise a :class:`UserError` if a share is not at least 0 and below 1."""
    if not 0 <= dropout < 1:
        raise UserError(f"adapter dropout {dropout:g}: expected a share from 0 to below 1")
