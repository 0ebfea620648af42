"""Seeds derived from a key, for random choices that can be repeated."""

import hashlib
import random
import sys

import torch


def derive_seed(*key: int | str) -> int:
    """Return a seed of 32 bits that depends only on ``key``."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "little")


def seed_everything(*key: int | str) -> None:
    """Seed the generators of Python, torch and (if it is loaded) NumPy from ``key``."""
    random.seed(derive_seed("random", *key))
    torch.manual_seed(derive_seed("torch", *key))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(derive_seed("numpy", *key))
