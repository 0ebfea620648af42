"""Several adapters over one trunk, which is in memory once."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..backbone import find_backbone
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .description import AdapterConfig
from .files import apply_adapter, read_adapter


class AdapterSet:
    """Models that differ in their adapters (highway, neck, heads) and share one trunk.

    Args:
        trunk: frozen, its weights loaded; every model reads it.
        build: makes the model of an adapter, from its description and tensors, around the trunk,
            see ``E3VABackbone(trunk=…)``.
        framework: of those models, see :func:`e3va.adapter_files.files.load_adapter`.
        find: the folder or file that a path given to :meth:`add` means.

    Attributes:
        active: the name of the adapter in use; None before the first.

    Example::

        models = AdapterSet(trunk, build)
        models.add("fruit", "output/fruit")
        models.add("leaves", "output/leaves")
        models.use("fruit")
        models(images)
    """

    def __init__(
        self,
        trunk: SwinTrunk,
        build: Callable[[AdapterConfig, Mapping[str, Tensor], SwinTrunk], nn.Module],
        framework: str = "",
        find: Callable[[str | os.PathLike], Path] = Path,
    ):
        self.trunk = trunk
        self.active: str | None = None
        self._build = build
        self._framework = framework
        self._find = find
        self._models: dict[str, tuple[nn.Module, AdapterConfig]] = {}

    @property
    def names(self) -> list[str]:
        """Of the adapters that are loaded."""
        return list(self._models)

    @property
    def model(self) -> nn.Module:
        """The model of the adapter in use.

        Raises:
            UserError: no adapter is loaded.
        """
        return self._active[0]

    @property
    def config(self) -> AdapterConfig:
        """The description of the adapter in use; raises as :attr:`model`."""
        return self._active[1]

    @property
    def _active(self) -> tuple[nn.Module, AdapterConfig]:
        if self.active is None:
            raise UserError("no adapter is loaded: add one first")
        return self._models[self.active]

    def add(self, name: str, path: str | os.PathLike, *, any_trunk: bool = False) -> AdapterConfig:
        """Load an adapter; the first one is in use from then on.

        Args:
            name: to switch to it by; an adapter of that name is replaced.
            path: its folder, or one of its files.
            any_trunk: though it was trained on another trunk.

        Raises:
            UserError: see :func:`e3va.adapter_files.files.load_adapter`; those loaded before stay as they are.
        """
        state, config = read_adapter(self._find(path))
        if not any_trunk:
            config.check_origin(self.trunk, str(path))
        model = self._build(config, state, self.trunk)
        assert find_backbone(model)[1].trunk is self.trunk, "the model has a trunk of its own"
        apply_adapter(
            *(model, state, config, str(path)), any_trunk=any_trunk, framework=self._framework
        )
        self._models[name] = model.eval(), config
        self.active = self.active or name
        return config

    def use(self, name: str) -> nn.Module:
        """Switch to a loaded adapter and give its model.

        Raises:
            UserError: none of that name is loaded.
        """
        self._check(name)
        self.active = name
        return self.model

    def remove(self, name: str) -> None:
        """Forget an adapter; the trunk and the others stay.

        Raises:
            UserError: none of that name is loaded.
        """
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
        return self.model(*args, **kwargs)
