"""Inference with a LazyConfig, in the form of Detectron2's ``DefaultPredictor``."""

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
from .backbone import find_trunk_module
from .checkpoint import HighwayCheckpointer, local_weights, warn_of_rounding
from .config import apply_overrides, bottom_up_node, load_config
from .describe import (
    FRAMEWORK,
    adopt,
    class_metadata,
    config_of_adapter,
    find_metadata,
    set_classes,
)
from .engine import adapter_options, check_device

FIRST = "default"  # name of the weights that the constructor loads
Config = str | os.PathLike | DictConfig


@dataclass
class _Ready:
    """Everything that a prediction with one adapter needs."""

    cfg: DictConfig
    model: nn.Module
    metadata: Metadata
    image_format: str
    augmentations: T.AugmentationList


class LazyPredictor:
    """Predictor for one image at a time on one device, with one or more adapters over one trunk.

    Args:
        config: a LazyConfig object, its file, a name below the project's ``configs`` folder, or the
            ``config.yaml`` of an output folder. With None, the adapter in ``weights`` names a
            config of this project, and its own settings and classes apply.
        weights: a checkpoint of a whole model, an adapter (its folder or a file of it), or an
            ``e3va://`` address of either; the config's ``train.init_checkpoint`` by default.
        overrides: ``key=value`` texts, see :func:`e3va.detectron2.apply_overrides`.
        device: device of the model; the config's ``train.device`` by default.
        trunk: file or address of the adapter's trunk; by default the adapter says where it is.
        any_trunk: whether to load adapters on a trunk with other weights than they were trained on.

    Attributes:
        active: the name of the adapter in use; ``"default"`` at first.
        names: the names of all loaded adapters.
        cfg, model, metadata: config, model in evaluation mode, and class names (in the form of
            Detectron2's ``Visualizer``) of the adapter in use.
        image_format: the order of channels that its model expects, ``"RGB"`` or ``"BGR"``.

    Raises:
        UserError: there is no such config, key, file or device, the weights are of another model,
            or the adapter's trunk is not found or has other weights.

    Example::

        predictor = LazyPredictor("output/config.yaml", "output/model_final.pth")
        instances = predictor(cv2.imread("image.jpg"))["instances"]

        predictor = LazyPredictor(weights="output/fruit")  # an adapter
        predictor.add("leaves", "output/leaves")  # both share one trunk in memory
        predictor.use("leaves")
    """

    def __init__(
        self,
        config: Config | None = None,
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
        path = local_weights(weights)
        description = read_config(path) if is_adapter(path) else None
        if cfg is None:
            cfg = _own_config(description, weights, overrides)
        elif description is not None:
            set_classes(cfg, description.classes)
        self.device = device or cfg.train.device
        check_device(self.device)
        model = instantiate(cfg.model).to(self.device).eval()
        options = adapter_options(cfg) | {"adapter_parts": "all"}
        self.any_trunk = any_trunk or options["any_trunk"]
        options |= {"any_trunk": self.any_trunk, "trunk": trunk or options["trunk"]}
        HighwayCheckpointer(model, **options).load(weights)
        self._ready = {FIRST: _make_ready(cfg, model, description)}
        self.use(FIRST)

    def add(
        self,
        name: str,
        weights: str | os.PathLike,
        config: Config | None = None,
        overrides: Iterable[str] = (),
    ) -> None:
        """Load a further adapter over the trunk in memory; :meth:`use` switches to it.

        Args:
            name: name of the adapter; it replaces an adapter with the same name.
            weights: an adapter, or its ``e3va://`` address.
            config: config of its model. With None, the config that the adapter names, or the
                predictor's first config if the adapter names the same or none.
            overrides: ``key=value`` texts for the config.

        Raises:
            UserError: as for the constructor; loaded adapters do not change then.
        """
        path, source = Path(local_weights(weights)), str(weights)
        if not is_adapter(path):
            raise UserError(f"{source} is no adapter: expected its folder, or its e3va:// address")
        state, description = read_adapter(path)
        trunk = find_trunk_module(self.model)
        if not self.any_trunk:
            description.check_origin(trunk, source)
        warn_of_rounding(trunk, description, source)
        cfg = self._config_for(description, source, config, overrides)
        model = _build_around(trunk, cfg).to(self.device).eval()
        apply_adapter(
            *(model, state, description, source), any_trunk=self.any_trunk, framework=FRAMEWORK
        )
        self._ready[name] = _make_ready(cfg, model, description)
        self.use(self.active)  # the new adapter may have replaced the one in use

    def _config_for(
        self,
        description: AdapterConfig,
        source: str,
        config: Config | None,
        overrides: Iterable[str],
    ) -> DictConfig:
        if config is not None:
            cfg = load_config(config, overrides)
            set_classes(cfg, description.classes)
            return cfg
        first = self._ready[FIRST].cfg
        if description.model.get("config", "") in ("", first.train.get("config_name")):
            return apply_overrides(adopt(load_config(first), description), overrides)
        return _own_config(description, source, overrides)

    def use(self, name: str) -> "LazyPredictor":
        """Switch to a loaded adapter, with its predictions and class names.

        Raises:
            UserError: no adapter of that name is loaded.
        """
        if name not in self._ready:
            raise UserError(
                f"no adapter {name!r} is loaded: expected one of {', '.join(self._ready)}"
            )
        self.active, ready = name, self._ready[name]
        self.cfg, self.model, self.metadata = ready.cfg, ready.model, ready.metadata
        self.image_format, self._augmentations = ready.image_format, ready.augmentations
        return self

    @property
    def names(self) -> list[str]:
        """The names of all loaded adapters."""
        return list(self._ready)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """Predict one image.

        Args:
            original_image: [H, W, 3] uint8 in BGR order, as ``cv2.imread`` returns it.

        Returns:
            the model's output for the image, in the image's coordinates; for detection
            ``{"instances": Instances}``.

        Raises:
            UserError: the array has another shape or type.
        """
        image = original_image
        shape, kind = getattr(image, "shape", ()), getattr(image, "dtype", type(image).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise UserError(f"image {shape} {kind}: expected a uint8 array [H, W, 3] in BGR order")
        if self.image_format == "RGB":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        entry = T.AugInput(image)
        self._augmentations(entry)
        image = torch.as_tensor(entry.image.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": image, "height": height, "width": width}])[0]


def _own_config(
    description: AdapterConfig | None, source: str, overrides: Iterable[str]
) -> DictConfig:
    """Build the config of this project that an adapter names."""
    if description is None:
        raise UserError(
            f"{source} is not an adapter, so it names no config: give the config of its model"
        )
    return apply_overrides(config_of_adapter(description, source), overrides)


def _build_around(trunk: SwinTrunk, cfg: DictConfig) -> nn.Module:
    """Build a config's model with a trunk that other models share."""
    node = bottom_up_node(cfg)
    node._set_flag("allow_objects", True)
    node.trunk = trunk
    try:
        return instantiate(cfg.model)
    finally:
        del node.trunk  # so that the config can be copied and saved


def _make_ready(cfg: DictConfig, model: nn.Module, description: AdapterConfig | None) -> _Ready:
    mapper = cfg.dataloader.test.mapper
    if mapper.image_format not in ("RGB", "BGR"):
        raise UserError(
            f"dataloader.test.mapper.image_format={mapper.image_format}: expected RGB or BGR"
        )
    names = description.classes if description is not None else ()
    return _Ready(
        cfg,
        model,
        class_metadata(cfg, names) if names else find_metadata(cfg),
        mapper.image_format,
        T.AugmentationList([instantiate(a) for a in mapper.augmentations]),
    )
