"""E³VA: memory-efficient fine-tuning of Swin backbones along an adapter highway.

The core needs only torch. Two frameworks use it: ``e3va.torchvision``, on which the ``e3va``
command is built, and ``e3va.detectron2``.
"""

from ._version import __version__
from .adapter_files.adapter_set import AdapterSet
from .adapter_files.files import load_adapter, save_adapter
from .backbone import E3VABackbone
from .highway import (
    RECIPES,
    Highway,
    HighwayConfig,
    adapter_kinds,
    highway_config,
    register_adapter_kind,
)
from .swin.presets import PRESETS, SwinPreset, get_preset
from .swin.trunk import StageOutput, SwinTrunk, TrunkNotFrozenError
from .utils.errors import UserError

__all__ = [
    "PRESETS",
    "RECIPES",
    "AdapterSet",
    "E3VABackbone",
    "Highway",
    "HighwayConfig",
    "StageOutput",
    "SwinPreset",
    "SwinTrunk",
    "TrunkNotFrozenError",
    "UserError",
    "__version__",
    "adapter_kinds",
    "get_preset",
    "highway_config",
    "load_adapter",
    "register_adapter_kind",
    "save_adapter",
]
