"""E³VA: memory-efficient fine-tuning of Swin backbones along an adapter highway.

The core, which needs torch alone. Two hosts stand on it: ``e3va.torchvision``, which
is the ``e3va`` command too, and ``e3va.detectron2``.
"""

from .adapter import Adapter, MixingAdapter
from .adapter_set import AdapterSet
from .adapters import load_adapter, save_adapter
from .backbone import E3VABackbone
from .errors import UserError
from .highway import Highway
from .presets import PRESETS, SwinPreset, get_preset
from .trunk import Stage, SwinTrunk, TrunkNotFrozenError

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Adapter",
    "AdapterSet",
    "E3VABackbone",
    "Highway",
    "MixingAdapter",
    "Stage",
    "SwinPreset",
    "SwinTrunk",
    "TrunkNotFrozenError",
    "UserError",
    "get_preset",
    "load_adapter",
    "save_adapter",
]
