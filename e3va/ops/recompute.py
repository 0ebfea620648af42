"""Activation checkpointing of single methods of a module."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint, noop_context_fn

Contexts = Callable[[], tuple[AbstractContextManager, AbstractContextManager]]


def recompute(
    owner: nn.Module,
    attribute: str = "forward",
    *,
    runs: nn.Module | None = None,
    contexts: Contexts = noop_context_fn,
) -> bool:
    """Recompute a method's intermediate results in the backward pass instead of keeping them.

    This applies in training mode with gradients on. A copy of the module recomputes its own method.
    A method that runs a batch norm does not change, because a second run would update the running
    statistics twice; the result is then False.

    Args:
        owner: the module.
        attribute: name of the method.
        runs: module that contains every module that the method runs; None for ``owner``.
        contexts: function that returns the contexts of the first and the second run of a call.
    """
    if has_batch_norm(owner if runs is None else runs):
        return False
    before = vars(owner).get(attribute)
    if not isinstance(before, _Recomputed):
        setattr(owner, attribute, _Recomputed(owner, attribute, before, contexts))
    return True


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a module contains a batch norm."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


class _Recomputed:
    """A replacement for the method: an attribute of the instance that hides the class's method."""

    def __init__(self, owner: nn.Module, name: str, before: Any, contexts: Contexts):
        self.owner, self.name, self.contexts = owner, name, contexts
        self.before = before  # an earlier attribute of the instance that hid the method

    def __call__(self, *args, **kwargs):
        if not (self.owner.training and torch.is_grad_enabled()):
            return self._run(args, kwargs)
        # saved_tensors_hooks see tensors in lists and dicts only as arguments of their own.
        leaves, spec = tree_flatten((args, kwargs))
        run = lambda *leaves: self._run(*tree_unflatten(leaves, spec))  # noqa: E731
        return checkpoint(run, *leaves, use_reentrant=False, context_fn=self.contexts)

    def _run(self, args, kwargs):
        # The method is looked up by name in each call, so that a copy of the owner runs its own.
        method = self.before or getattr(type(self.owner), self.name).__get__(self.owner)
        return method(*args, **kwargs)
