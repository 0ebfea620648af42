"""The plain modules of a Swin Transformer (Liu et al., arXiv 2103.14030), under official names.

Implementations differ on maps that windows do not tile. As in Detectron2, a map is padded on the
right and below after the first norm, then shifted, even if one window covers it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windows import from_windows, relative_position_index, to_windows

PATCH = 4  # side of a patch in pixels, in all published Swins


def unchanged(name: str, value: Tensor, normed: Tensor | None = None, stream=None) -> Tensor:
    """Return a block's value as it is.

    This is a block's default ``change``. Adapters inside a trunk give another function, which
    returns the value to go on with.

    Args:
        name: the value: ``"qkv"``, ``"attended"``, ``"after_msa"``, ``"fc1"``, ``"projected"`` or
            ``"after_mlp"``.
        value: the value [B, H, W, C]; for ``"qkv"`` that of windows [B, nW, N, 3C], for ``"fc1"``
            [B, H, W, hidden].
        normed: the input of the value's sublayer, after its norm.
        stream: the residual stream before the sublayer.
    """
    return value


class PatchEmbed(nn.Module):
    """Map from images [B, 3, H, W] to tokens [B, ceil(H/4), ceil(W/4), C]."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Pad, convolve and normalize."""
        return self.norm(self.proj(self.pad(images)).permute(0, 2, 3, 1))

    @staticmethod
    def pad(images: Tensor) -> Tensor:
        """Pad with zeros on the right and below to whole patches."""
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % PATCH, 0, -height % PATCH))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias (section 3.2)."""

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        table = nn.init.trunc_normal_(torch.zeros((2 * window - 1) ** 2, num_heads), std=0.02)
        self.relative_position_bias_table = nn.Parameter(table)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # It follows from the window, so it is not part of the state dict.
        self.register_buffer("position_index", relative_position_index(window), persistent=False)

    def bias(self) -> Tensor:
        """Return the relative position bias [heads, N, N] for N = window² tokens."""
        tokens = self.window**2
        table = self.relative_position_bias_table[self.position_index]
        return table.view(tokens, tokens, self.num_heads).permute(2, 0, 1)

    def forward(self, windows: Tensor, mask: Tensor | None, change: Callable = unchanged) -> Tensor:
        """Attend within [B, nW, N, C]; ``mask`` [nW, N, N] is added to the attention's logits."""
        batch, count, tokens, dim = windows.shape
        qkv = change("qkv", self.qkv(windows), windows)
        qkv = qkv.view(batch * count, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.bias().to(query.dtype)
        if mask is not None:
            bias = bias + mask.to(query.dtype)[:, None]
        shape = (batch, count, self.num_heads, tokens, tokens)
        if windows.is_cuda:
            bias = bias.expand(shape).flatten(0, 1)
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            # On a CPU, torch's function copies the bias for each image and multiplies strided
            # tensors, which is slow in bfloat16.
            logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            out = (logits.view(shape) + bias).softmax(-1).flatten(0, 1) @ value
        return self.proj(out.transpose(1, 2).reshape(batch, count, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, change: Callable = unchanged) -> Tensor:
        """Map [..., dim] to [..., dim]."""
        return self.fc2(F.gelu(change("fc1", self.fc1(x), x)))


class SwinBlock(nn.Module):
    """A Swin block: attention in windows, shifted by 0 or ``window // 2`` tokens, and an MLP."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def window_attention(
        self, x: Tensor, mask: Tensor | None, change: Callable = unchanged
    ) -> Tensor:
        """Run the window attention on the normed [B, H, W, C]; the output has the same shape."""
        height, width = x.shape[1:3]
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        padded = x.shape[1:3]
        windows = self.attn(to_windows(x, side), mask if self.shift else None, change)
        x = from_windows(windows, padded, side)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def forward(
        self, x: Tensor, mask: Tensor | None, change: Callable = unchanged
    ) -> dict[str, Tensor]:
        """Return the outputs of attention and MLP, and the stream after each, all [B, H, W, C].

        ``change`` has the arguments of :func:`unchanged`.
        """
        normed = self.norm1(x)
        attended = self.window_attention(normed, mask, change)
        attended = change("attended", attended, normed, x)
        after_msa = change("after_msa", x + attended)
        normed = self.norm2(after_msa)
        projected = change("projected", self.mlp(normed, change), normed, after_msa)
        return {
            "attended": attended,
            "after_msa": after_msa,
            "projected": projected,
            "after_mlp": change("after_mlp", after_msa + projected),
        }


class PatchMerging(nn.Module):
    """Downsampling by two: each 2×2 tokens are joined, normalized and reduced to 2C channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Map [B, H·W, C] to [B, ceil(H/2)·ceil(W/2), 2C]; odd maps are padded with zeros."""
        return self.reduction(self.norm(self.corners(x, height, width)))

    def difference(self, x: Tensor, base: Tensor, height: int, width: int) -> Tensor:
        """Compute ``self(x) − self(base)``, exactly zero for equal inputs in any precision."""
        # In half precision the difference of the reduction's outputs would be mostly rounding.
        joined = (self.corners(y, height, width) for y in (x, base.to(x.dtype)))
        normed, base_normed = map(self.norm, joined)
        return self.reduction(normed - base_normed)

    @staticmethod
    def corners(x: Tensor, height: int, width: int) -> Tensor:
        """Join each 2×2 tokens: [B, H·W, C] to [B, ceil(H/2)·ceil(W/2), 4C]."""
        x = x.unflatten(1, (height, width))
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.cat(corners, dim=-1).flatten(1, 2)


def init_linear(module: nn.Module) -> None:
    """Give a linear layer the start of Swins, a normal distribution with deviation 0.02."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
