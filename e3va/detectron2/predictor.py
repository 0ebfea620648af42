"""Inference with a LazyConfig, in the form of Detectron2's ``DefaultPredictor``."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata
from omegaconf import DictConfig
from torch import Tensor, nn

from ..adapter_files.adapter_set import AdapterSet
from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import is_adapter, read_config
from ..backbone import find_backbone
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError, check_choice
from .checkpoint import HighwayCheckpointer, local_weights, pinned_weights, warn_of_rounding
from .config import apply_overrides, bottom_up_node, load_config
from .describe import FRAMEWORK, adopt, config_of_adapter, find_metadata, set_classes
from .engine import adapter_options, check_device
from .presets import resolve_preset

FIRST = "default"  # name of the weights that the constructor loads
Config = str | os.PathLike | DictConfig


class LazyPredictor(AdapterSet):
    """Predictor for one image at a time on one device, with one or more adapters over one trunk.

    Args:
        config: a LazyConfig object, its file, a name below the project's ``configs`` folder, or the
            ``config.yaml`` of an output folder. With None, the adapter in ``weights`` names a
            config of this project, and its own settings and classes apply.
        weights: a checkpoint of a whole model, an adapter (its folder or a file of it), or an
            ``e3va://`` or ``hf://`` address of either; by default the config's
            ``train.init_checkpoint``.
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
        UserError: there is no such config, key, file or device; the weights are of another model;
            the adapter's trunk is not found or has other weights.

    Example::

        predictor = LazyPredictor("output/config.yaml", "output/model_final.pth")
        instances = predictor(cv2.imread("image.jpg"))["instances"]

        predictor = LazyPredictor(weights="output/fruit")  # an adapter
        predictor.load_adapter("leaves", "output/leaves")  # both share one trunk in memory
        predictor.set_adapter("leaves")
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
        weights = pinned_weights(weights)
        path = local_weights(weights)
        description = read_config(path) if is_adapter(path) else None
        if cfg is None:
            cfg = apply_overrides(config_of_adapter(description, weights), overrides)
        elif description is not None:
            set_classes(cfg, description.classes)
        resolve_preset(cfg, weights)
        self.device = device or cfg.train.device
        check_device(self.device)
        model = instantiate(cfg.model).to(self.device).eval()
        options = adapter_options(cfg) | {"adapter_parts": "all"}
        self.any_trunk = any_trunk or options["any_trunk"]
        options |= {"any_trunk": self.any_trunk, "trunk": trunk or options["trunk"]}
        HighwayCheckpointer(model, **options).load(weights)
        super().__init__(find_backbone(model)[1].trunk, self._build_model, FRAMEWORK, _find_adapter)
        self._first_cfg = cfg
        self._models[FIRST] = _prepare(model, cfg, description), description
        self.active = FIRST

    def load_adapter(
        self,
        name: str,
        path: str | os.PathLike,
        config: Config | None = None,
        overrides: Iterable[str] = (),
    ) -> AdapterConfig:
        """Load a further adapter over the trunk in memory; ``set_adapter`` switches to it.

        It replaces an adapter with the same name. With ``config`` None, its model has the config
        that the adapter names, or the first config if the adapter names the same or none.

        Raises:
            UserError: as for the constructor; loaded adapters do not change then.
        """
        given = {"source": str(path), "config": config, "overrides": overrides}
        return super().load_adapter(name, path, any_trunk=self.any_trunk, **given)

    def _build_model(
        self,
        description: AdapterConfig,
        state: Mapping[str, Tensor],
        trunk: SwinTrunk,
        source: str,
        config: Config | None,
        overrides: Iterable[str],
    ) -> nn.Module:
        """Build the model of a further adapter around the trunk."""
        warn_of_rounding(trunk, description, source)
        first = self._first_cfg
        if config is not None:
            cfg = load_config(config, overrides)
            set_classes(cfg, description.classes)
        elif description.model.get("config", "") in ("", first.train.get("config_name")):
            cfg = apply_overrides(adopt(load_config(first), description), overrides)
        else:
            cfg = apply_overrides(config_of_adapter(description, source), overrides)
        node = bottom_up_node(cfg)
        node._set_flag("allow_objects", True)
        node.trunk = trunk
        try:
            model = instantiate(cfg.model).to(self.device)
        finally:
            del node.trunk  # so that the config can be copied and saved
        return _prepare(model, cfg, description)

    @property
    def cfg(self) -> DictConfig:
        """The config of the model in use."""
        return self.model.cfg

    @property
    def metadata(self) -> Metadata:
        """The class names of the adapter in use."""
        return self.model.metadata

    @property
    def image_format(self) -> str:
        """The order of channels that the model in use expects."""
        return self.cfg.dataloader.test.mapper.image_format

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """Return the model's output for one image, in the image's coordinates.

        ``original_image`` is [H, W, 3] uint8 in BGR order, as ``cv2.imread`` returns it. A detector
        returns ``{"instances": Instances}``. Its ``pred_masks`` are [N, H, W] bool, H·W bytes for
        each object; within ``masks_on_demand(predictor.model)`` (:mod:`e3va.detectron2.masks`) they
        are made one at a time.

        Raises:
            UserError: the array has another shape or type.
        """
        return super().__call__(original_image)

    def _call(self, model: nn.Module, original_image: np.ndarray) -> dict:
        image = original_image
        shape, kind = getattr(image, "shape", ()), getattr(image, "dtype", type(image).__name__)
        if kind != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise UserError(f"image {shape} {kind}: expected a uint8 array [H, W, 3] in BGR order")
        if model.cfg.dataloader.test.mapper.image_format == "RGB":
            image = image[:, :, ::-1]
        height, width = image.shape[:2]
        entry = T.AugInput(image)
        model.augmentations(entry)
        image = torch.as_tensor(entry.image.astype("float32").transpose(2, 0, 1))
        return model([{"image": image, "height": height, "width": width}])[0]


def _find_adapter(path: str | os.PathLike) -> Path:
    local = Path(local_weights(path))
    if not is_adapter(local):
        raise UserError(
            f"{path} is no adapter: expected its folder, or its address (e3va://NAME, hf://USER/NAME)"
        )
    return local


def _prepare(model: nn.Module, cfg: DictConfig, description: AdapterConfig | None) -> nn.Module:
    """Attach what a prediction needs to a model: config, class names and augmentations."""
    mapper = cfg.dataloader.test.mapper
    check_choice("dataloader.test.mapper.image_format", mapper.image_format, ("RGB", "BGR"))
    model.cfg = cfg
    model.metadata = find_metadata(cfg, description.classes if description is not None else ())
    model.augmentations = T.AugmentationList([instantiate(a) for a in mapper.augmentations])
    return model
