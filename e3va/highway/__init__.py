"""The highway: config and recipes, registry of adapter kinds, fast forms."""

from . import fast_chain, fast_parallel  # noqa: F401  registers the fast forms
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
