"""Inference with a LazyConfig: ``DefaultPredictor``'s call, which takes yacs configs alone."""

import os
from collections.abc import Iterable

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import Metadata, MetadataCatalog
from omegaconf import DictConfig

from ..errors import UserError
from .checkpoint import HighwayCheckpointer
from .config import load_config
from .engine import check_device


class LazyPredictor:
    """One image in, one prediction out, on one device.

    Args:
        config: a LazyConfig object, its file, a name below the project's ``configs`` folder, or the
            ``config.yaml`` of an output folder.
        weights: a checkpoint of the whole model; the config's ``train.init_checkpoint`` by default.
        overrides: ``key=value``, see :func:`e3va.detectron2.apply_overrides`.
        device: the config's ``train.device`` by default.

    Attributes:
        model: the model in evaluation mode.
        metadata: the class names, as Detectron2's ``Visualizer`` takes them.

    Raises:
        UserError: no such config, key, weights or device; weights of another model.

    Example::

        predictor = LazyPredictor("output/config.yaml", "output/model_final.pth")
        instances = predictor(cv2.imread("image.jpg"))["instances"]
    """

    def __init__(
        self,
        config: str | os.PathLike | DictConfig,
        weights: str | os.PathLike | None = None,
        overrides: Iterable[str] = (),
        device: str | None = None,
    ):
        self.cfg = load_config(config, overrides)
        device = device or self.cfg.train.device
        check_device(device)
        weights = str(weights or self.cfg.train.init_checkpoint)
        if not weights:
            raise UserError("no weights: give a checkpoint, or set train.init_checkpoint")
        self.model = instantiate(self.cfg.model).to(device).eval()
        HighwayCheckpointer(self.model).load(weights)
        mapper = self.cfg.dataloader.test.mapper
        self.image_format = mapper.image_format
        if self.image_format not in ("RGB", "BGR"):
            raise UserError(
                f"dataloader.test.mapper.image_format={self.image_format}: expected RGB or BGR"
            )
        self.augmentations = T.AugmentationList([instantiate(a) for a in mapper.augmentations])
        self.metadata = self._find_metadata()

    def _find_metadata(self) -> Metadata:
        if "data" in self.cfg and self.cfg.data.classes is not None:
            return Metadata(thing_classes=list(self.cfg.data.classes))
        names = self.cfg.dataloader.test.dataset.get("names")
        return MetadataCatalog.get(names) if isinstance(names, str) else Metadata()

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
        self.augmentations(entry)
        image = torch.as_tensor(entry.image.astype("float32").transpose(2, 0, 1))
        return self.model([{"image": image, "height": height, "width": width}])[0]
