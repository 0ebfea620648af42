"""The highway: its config and recipes, the registry of adapter kinds, and the fast forms."""

from . import fast_chain, fast_parallel  # noqa: F401  they register themselves
from .config import RECIPES, HighwayConfig, highway_config
from .highway import Highway
from .registry import adapter_kinds, register_adapter_kind

__all__ = [
    "RECIPES",
    "Highway",
    "HighwayConfig",
    "adapter_kinds",
    "highway_config",
    "register_adapter_kind",
]
