"""The Detectron2 framework: E³VA backbones in its registry, and training and inference over its parts.

Importing it registers ``build_e3va_swin_backbone``, ``build_e3va_swin_fpn_backbone`` and
``build_retinanet_e3va_swin_fpn_backbone`` in Detectron2's ``BACKBONE_REGISTRY`` and
``ade_challenge_2016_{train,val}`` in its ``DatasetCatalog``, and teaches its
``PathManager`` the addresses of the model zoo (``e3va://...``).

Raises:
    UserError: Detectron2 is not installed.
"""

import warnings

from ..model_zoo import register
from ..utils.optional import require

require("detectron2", "e3va.detectron2")

with warnings.catch_warnings():
    # torch's, about what Detectron2 does while it is imported; no user of ours can act on them.
    warnings.simplefilter("ignore", FutureWarning)
    from detectron2.utils.file_io import PathManager

    from . import ade20k  # noqa: F401
    from .backbone import (
        E3VASwin,
        build_e3va_swin_backbone,
        build_e3va_swin_fpn_backbone,
        build_retinanet_e3va_swin_fpn_backbone,
    )
    from .config import add_e3va_config, apply_overrides, load_config
    from .predictor import LazyPredictor
    from .trainer import HighwayTrainer

register(PathManager)

__all__ = [
    "E3VASwin",
    "HighwayTrainer",
    "LazyPredictor",
    "add_e3va_config",
    "apply_overrides",
    "build_e3va_swin_backbone",
    "build_e3va_swin_fpn_backbone",
    "build_retinanet_e3va_swin_fpn_backbone",
    "load_config",
]
