"""Several adapters over one trunk, which is in memory once."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..backbone import find_backbone
from ..swin.shared_passes import share_passes
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .description import AdapterConfig
from .files import apply_adapter, read_adapter


@dataclass(eq=False, repr=False)
class AdapterSet:
    """Models that differ in their adapters (highway, neck, heads) and share one trunk.

    Example::

        models = AdapterSet(trunk, build)
        models.load_adapter("fruit", "output/fruit")
        models.load_adapter("leaves", "output/leaves")
        models.set_adapter("fruit")
        models(images)
        models.predict_all(images)  # of both, with one pass of the trunk
    """

    trunk: SwinTrunk  # frozen, with its weights loaded; every model uses it
    # Builds a model from an adapter's description and tensors, and the trunk.
    build: Callable[..., nn.Module]
    framework: str = ""  # of the models, see load_adapter in files.py
    find: Callable[[str | os.PathLike], Path] = Path  # maps a path to an adapter's folder or file
    active: str | None = field(default=None, init=False)  # name of the adapter in use
    # Names of the adapters that shared each pass of the trunk in the last call of predict_all.
    passes: list[list[str]] = field(default_factory=list, init=False)
    _models: dict[str, tuple[nn.Module, AdapterConfig]] = field(default_factory=dict, init=False)

    @property
    def names(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(self._models)

    @property
    def model(self) -> nn.Module:
        """Model of the adapter in use; a :class:`UserError` if no adapter is loaded."""
        return self._active()[0]

    @property
    def config(self) -> AdapterConfig:
        """Description of the adapter in use; a :class:`UserError` if no adapter is loaded."""
        return self._active()[1]

    def _active(self) -> tuple[nn.Module, AdapterConfig]:
        if self.active is None:
            raise UserError("no adapter is loaded: load one with load_adapter(name, path)")
        return self._models[self.active]

    def load_adapter(
        self, name: str, path: str | os.PathLike, *, any_trunk: bool = False, **settings: Any
    ) -> AdapterConfig:
        """Load an adapter under a name; the first one becomes the adapter in use.

        A loaded adapter with the same name is replaced. See
        :func:`e3va.adapter_files.files.load_adapter` for the arguments and errors; after an error
        the loaded adapters are unchanged. ``settings`` are further keyword arguments of ``build``.
        """
        state, config = read_adapter(self.find(path))
        if not any_trunk:
            config.check_origin(self.trunk, str(path))
        model = self.build(config, state, self.trunk, **settings)
        assert find_backbone(model)[1].trunk is self.trunk, "the model has a trunk of its own"
        apply_adapter(
            *(model, state, config, str(path)), any_trunk=any_trunk, framework=self.framework
        )
        self._models[name] = model.eval(), config
        self.active = self.active or name
        return config

    def set_adapter(self, name: str) -> nn.Module:
        """Switch to a loaded adapter and return its model; raise UserError if there is none."""
        self._check(name)
        self.active = name
        return self.model

    def delete_adapter(self, name: str) -> None:
        """Delete a loaded adapter; the trunk and the other adapters stay."""
        self._check(name)
        del self._models[name]
        if name == self.active:
            self.active = next(iter(self._models), None)

    def _check(self, name: str) -> None:
        if name not in self._models:
            known = ", ".join(self._models) or "none"
            raise UserError(f"no adapter {name!r} is loaded: expected one of {known}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model of the adapter in use."""
        return self._call(self.model, *args, **kwargs)

    def _call(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    def predict_all(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Call the model of every adapter, and return their results by name.

        Models that give the trunk the same images share one pass of it. Those that resize images
        differently, or compute in another type, run a pass of their own; :attr:`passes` tells them
        apart. Each result is that of a separate call.

        Example::

            results = models.predict_all([image])
            results["fruit"], results["leaves"]
        """
        if not self._models:
            raise UserError("no adapter is loaded: load one with load_adapter(name, path)")
        results = {}
        with share_passes(self.trunk) as shared, torch.no_grad():
            for name, (model, _) in self._models.items():
                shared.reader = name
                results[name] = self._call(model, *args, **kwargs)
        self.passes = shared.readers
        return results
