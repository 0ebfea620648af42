"""Tokens as maps and back."""

from torch import Tensor


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, T, C], T = height · width in row order, as a map [B, C, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def to_tokens(x: Tensor) -> Tensor:
    """Return a map [B, C, H, W] as tokens [B, T, C] in row order."""
    return x.flatten(2).transpose(1, 2)
