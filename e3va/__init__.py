"""E³VA: memory-efficient fine-tuning of Swin backbones along an adapter highway.

The core, which needs torch alone. Two hosts stand on it: ``e3va.torchvision``, which
is the ``e3va`` command too, and ``e3va.detectron2``.
"""

from ._version import __version__
from .adapter_files.adapter_set import AdapterSet
from .adapter_files.files import load_adapter, save_adapter
from .backbone import E3VABackbone
from .highway.adapters.conv import MixingAdapter
from .highway.adapters.dual_low_rank import Adapter
from .highway.highway import Highway
from .swin.presets import PRESETS, SwinPreset, get_preset
from .swin.trunk import Stage, SwinTrunk, TrunkNotFrozenError
from .utils.errors import UserError

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
    "__version__",
    "get_preset",
    "load_adapter",
    "save_adapter",
]
