"""Inference with a LazyConfig: ``DefaultPredictor``'s call, which takes yacs configs alone."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata
from omegaconf import DictConfig
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import apply_adapter, is_adapter, read_adapter, read_config
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .adapter_trunk import warn_of_rounding
from .backbone import find_trunk_module
from .checkpoint import HighwayCheckpointer, local_weights
from .config import apply_overrides, load_config
from .describe import (
    FRAMEWORK,
    adopt,
    class_metadata,
    config_of_adapter,
    find_metadata,
    set_classes,
)
from .engine import adapter_options, check_device

FIRST = "default"  # the name of what a predictor begins with


@dataclass
class _Ready:
    """All that a prediction needs, of one adapter."""

    cfg: DictConfig
    model: nn.Module
    metadata: Metadata
    image_format: str
    augmentations: T.AugmentationList


class LazyPredictor:
    """One image in, one prediction out, on one device; of one or more adapters over one trunk.

    Args:
        config: a LazyConfig object, its file, a name below the project's ``configs`` folder, or the
            ``config.yaml`` of an output folder. None with an adapter that names one of this
            project's: it is that config then, with the adapter's settings and classes.
        weights: a checkpoint of the whole model, an adapter (its folder or a file of it), or an
            ``e3va://`` address of either; the config's ``train.init_checkpoint`` by default.
        overrides: ``key=value``, see :func:`e3va.detectron2.apply_overrides`.
        device: the config's ``train.device`` by default.
        trunk: what the adapter was trained on, a file or address; by default looked for where the
            adapter says.
        any_trunk: take an adapter though its trunk is another one.

    Attributes:
        active: the name of the adapter in use; ``"default"`` for what the predictor began with.
        names: of all that are loaded.
        cfg, model, metadata: of the adapter in use: its config, its model in evaluation mode, its
            class names as Detectron2's ``Visualizer`` takes them.

    Raises:
        UserError: no such config, key, weights or device; weights of another model; an adapter
            whose trunk is not found or another one.

    Example::

        predictor = LazyPredictor("output/config.yaml", "output/model_final.pth")
        instances = predictor(cv2.imread("image.jpg"))["instances"]

        predictor = LazyPredictor(weights="output/fruit")  # an adapter
        predictor.add("leaves", "output/leaves")  # the trunk stays in memory once
        predictor.use("leaves")
    """

    def __init__(
        self,
        config: str | os.PathLike | DictConfig | None = None,
        weights: str | os.PathLike | None = None,
        overrides: Iterable[str] = (),
        device: str | None = None,
        *,
        trunk: str | os.PathLike | None = None,
        any_trunk: bool = False,
    ):
        cfg = None if config is None else load_config(config, overrides)
        weights = str(weights or (cfg is not None and cfg.train.init_checkpoint) or "")
        if not weights:
            raise UserError(
                "no weights: give a checkpoint or an adapter, or set train.init_checkpoint"
            )
        told = _read_told(weights)
        if cfg is None:
            cfg = _own_config(told, weights, overrides)
        elif told is not None:
            set_classes(cfg, told.classes)
        self.device = device or cfg.train.device
        check_device(self.device)
        model = instantiate(cfg.model).to(self.device).eval()
        options = adapter_options(cfg) | {"adapter_parts": "all"}
        self.any_trunk = any_trunk or options["any_trunk"]
        options |= {"any_trunk": self.any_trunk, "trunk": trunk or options["trunk"]}
        HighwayCheckpointer(model, **options).load(weights)
        self._ready = {FIRST: _make_ready(cfg, model, told)}
        self.active = FIRST

    def add(
        self,
        name: str,
        weights: str | os.PathLike,
        config: str | os.PathLike | DictConfig | None = None,
        overrides: Iterable[str] = (),
    ) -> None:
        """Load a further adapter over the trunk that is in memory; :meth:`use` switches to it.

        Args:
            name: one of that name is replaced.
            weights: an adapter, or its ``e3va://`` address.
            config: of its model. None: the predictor's first, if the adapter names that one or
                none; else that of this project which it names.
            overrides: ``key=value`` for the config.

        Raises:
            UserError: as the constructor; what is loaded already stays as it is.
        """
        path, source = Path(local_weights(weights)), str(weights)
        if not is_adapter(path):
            raise UserError(f"{source} is no adapter: expected its folder, or its e3va:// address")
        state, told = read_adapter(path)
        trunk = find_trunk_module(self.model)
        if not self.any_trunk:
            told.check_origin(trunk, source)
        warn_of_rounding(trunk, told, source)
        cfg = self._config_for(told, source, config, overrides)
        model = _build_around(trunk, cfg).to(self.device).eval()
        apply_adapter(model, state, told, source, any_trunk=self.any_trunk, framework=FRAMEWORK)
        self._ready[name] = _make_ready(cfg, model, told)

    def _config_for(
        self,
        told: AdapterConfig,
        source: str,
        config: str | os.PathLike | DictConfig | None,
        overrides: Iterable[str],
    ) -> DictConfig:
        if config is not None:
            cfg = load_config(config, overrides)
            set_classes(cfg, told.classes)
            return cfg
        first = self._ready[FIRST].cfg
        if told.model.get("config", "") in ("", first.train.get("config_name")):
            return apply_overrides(adopt(load_config(first), told), overrides)
        return _own_config(told, source, overrides)

    def use(self, name: str) -> "LazyPredictor":
        """Switch to a loaded adapter: predictions and class names are its own from now on.

        Raises:
            UserError: none of that name is loaded.
        """
        if name not in self._ready:
            raise UserError(
                f"no adapter {name!r} is loaded: expected one of {', '.join(self._ready)}"
            )
        self.active = name
        return self

    @property
    def names(self) -> list[str]:
        """Of all that are loaded."""
        return list(self._ready)

    @property
    def cfg(self) -> DictConfig:
        """Of the adapter in use."""
        return self._ready[self.active].cfg

    @property
    def model(self) -> nn.Module:
        """Of the adapter in use, in evaluation mode."""
        return self._ready[self.active].model

    @property
    def metadata(self) -> Metadata:
        """The class names of the adapter in use."""
        return self._ready[self.active].metadata

    @property
    def image_format(self) -> str:
        """The order of channels that the model in use takes: ``"RGB"`` or ``"BGR"``."""
        return self._ready[self.active].image_format

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """Predict one image.

        Args:
            original_image: [H, W, 3] uint8 in BGR order, as ``cv2.imread`` gives it.

        Returns:
            the model's output for the image, in its own coordinates; for detection
            ``{"instances": Instances}``.

        Raises:
            UserError: an array of another shape or type.
        """
        if (
            not isinstance(original_image, np.ndarray)
            or original_image.dtype != np.uint8
            or original_image.ndim != 3
            or original_image.shape[2] != 3
            or 0 in original_image.shape
        ):
            what = getattr(original_image, "shape", type(original_image).__name__)
            kind = getattr(original_image, "dtype", "")
            raise UserError(f"image {what} {kind}: expected a uint8 array [H, W, 3] in BGR order")
        image = original_image
        if self.image_format == "RGB":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        entry = T.AugInput(image)
        self._ready[self.active].augmentations(entry)
        image = torch.as_tensor(entry.image.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": image, "height": height, "width": width}])[0]


def _read_told(weights: str | os.PathLike) -> AdapterConfig | None:
    """An adapter's description; None for other weights."""
    path = local_weights(weights)
    return read_config(path) if is_adapter(path) else None


def _own_config(told: AdapterConfig | None, source: str, overrides: Iterable[str]) -> DictConfig:
    """The config of this project that an adapter names."""
    if told is None:
        raise UserError(
            f"no config given for {source}: expected one, or an adapter, which names its own"
        )
    return apply_overrides(config_of_adapter(told, source), overrides)


def _build_around(trunk: SwinTrunk, cfg: DictConfig) -> nn.Module:
    """A config's model with a trunk that others have too."""
    node = cfg.model.backbone.get("bottom_up", cfg.model.backbone)
    node._set_flag("allow_objects", True)
    node.trunk = trunk
    try:
        return instantiate(cfg.model)
    finally:
        del node.trunk  # a config is data: it can be copied and saved


def _make_ready(cfg: DictConfig, model: nn.Module, told: AdapterConfig | None) -> _Ready:
    mapper = cfg.dataloader.test.mapper
    if mapper.image_format not in ("RGB", "BGR"):
        raise UserError(
            f"dataloader.test.mapper.image_format={mapper.image_format}: expected RGB or BGR"
        )
    own = told is not None and told.classes
    return _Ready(
        cfg,
        model,
        class_metadata(cfg, told.classes) if own else find_metadata(cfg),
        mapper.image_format,
        T.AugmentationList([instantiate(a) for a in mapper.augmentations]),
    )
