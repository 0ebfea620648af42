"""E³VA for Detectron2: backbones, data, training and inference.

Importing this package registers backbones (``build_...``), the data sets
``ade_challenge_2016_{train,val}``, and addresses of the zoo (``e3va://...``) in Detectron2.
"""

import warnings

from ..model_zoo import register
from ..utils.optional import require

require("detectron2", "e3va.detectron2")

with warnings.catch_warnings():
    # Detectron2 imports deprecated parts of torch and setuptools; users cannot change that.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")
    import detectron2.model_zoo  # noqa: F401  configs import it, and it imports pkg_resources
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
