"""E³VA backbones in torchvision's detectors; the ``e3va`` command trains them.

Raises:
    UserError: torchvision or pycocotools is not installed.
"""

from ..utils.optional import require

for _package in ("torchvision", "pycocotools"):
    require(_package, "e3va.torchvision")

from . import model_zoo  # noqa: E402
from .cascade import CascadeRoIHeads  # noqa: E402
from .loading import load_adapters, load_model  # noqa: E402
from .models import ModelConfig, build_model, load_pretrained  # noqa: E402
from .pyramid import PyramidBackbone  # noqa: E402
from .semantic import SemanticFPN  # noqa: E402

__all__ = [
    "CascadeRoIHeads",
    "ModelConfig",
    "PyramidBackbone",
    "SemanticFPN",
    "build_model",
    "load_adapters",
    "load_model",
    "load_pretrained",
    "model_zoo",
]
