"""Activation checkpointing of single methods: what they compute is computed again for backward."""

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
    """Let a method of this one module keep its arguments alone for the backward pass.

    Where grad is enabled and ``owner`` is in training mode, the method's intermediate results are
    dropped, and computed a second time when the backward pass needs them, under the same autocast
    and random state; otherwise it runs as before. Names in the state dict stay, and copies
    (``copy.deepcopy``, pickle) recompute their own method.

    Args:
        owner: the module.
        attribute: name of the method.
        runs: the modules that the method runs; by default all of ``owner``.
        contexts: gives for each call the contexts of its first and of its second run.

    Returns:
        whether the method is now recomputed. One that runs a batch norm is left as it is: a second
        run would update the running statistics twice.
    """
    if has_batch_norm(owner if runs is None else runs):
        return False
    before = vars(owner).get(attribute)
    if not isinstance(before, _Recomputed):
        setattr(owner, attribute, _Recomputed(owner, attribute, before, contexts))
    return True


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a batch norm is in it; its mode does not matter, since that may change."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


class _Recomputed:
    """What stands in for the method: an attribute of the instance, which hides the class's."""

    def __init__(self, owner: nn.Module, name: str, before: Any, contexts: Contexts):
        self.owner = owner
        self.name = name
        self.before = before  # what an earlier attribute of the instance hid the method with
        self.contexts = contexts

    def __call__(self, *args, **kwargs):
        if not (self.owner.training and torch.is_grad_enabled()):
            return self._run(*args, **kwargs)
        # As arguments of their own, tensors in lists and dicts are seen by saved_tensors_hooks.
        leaves, spec = tree_flatten((args, kwargs))
        return checkpoint(
            self._run_flat, spec, *leaves, use_reentrant=False, context_fn=self.contexts
        )

    def _run_flat(self, spec, *leaves):
        args, kwargs = tree_unflatten(leaves, spec)
        return self._run(*args, **kwargs)

    def _run(self, *args, **kwargs):
        # Found by name in each call, so that a copy of the owner runs its own.
        method = self.before or getattr(type(self.owner), self.name).__get__(self.owner)
        return method(*args, **kwargs)
