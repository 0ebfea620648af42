"""The trunk: a Swin Transformer that runs forward once, without autograd, and lends out its taps.

Module names are those of the official Swin repository, so that published weights load as they are.
Where implementations of Swin differ on maps that windows do not tile, this one follows the official
detection code and Detectron2: a map is padded on the right and below with zeros after the first
norm, then shifted, and the shift stays on when a single window covers the map.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import UserError
from . import fast_trunk
from .precision import check_precision, compute_dtype
from .presets import SwinPreset, get_preset
from .windows import from_windows, relative_position_index, shift_mask, to_windows

PATCH = 4  # pixels; all published Swins
TAPS = ("block", "residual", "sublayer")
# What a block computes, see SwinBlock.forward, that is a tap: of its attention and of its MLP.
_TAPPED = {
    "block": (None, "after_mlp"),
    "residual": ("after_msa", "after_mlp"),
    "sublayer": ("attended", "projected"),
    None: (None, None),
}


class TrunkNotFrozenError(RuntimeError):
    """A frozen trunk's parameter requires grad, has a gradient, or sits in an optimizer."""


@dataclass
class Stage:
    """What a highway reads of one stage s of the trunk. No tensor requires grad (frozen trunk).

    Attributes:
        index: s.
        msa: one tap [B, T_s, C_s] for each block, from its window attention; empty for the taps
            ``"block"``.
        mlp: one tap [B, T_s, C_s] for each block, from its MLP.
        out: x_s [B, T_s, C_s], the residual stream after the last block.
        merged: PM_s(x_s) [B, T_{s+1}, C_{s+1}]; None after the last stage.
        height, width: H_s and W_s in tokens, T_s = H_s · W_s.
    """

    index: int
    msa: list[Tensor]
    mlp: list[Tensor]
    out: Tensor
    merged: Tensor | None
    height: int
    width: int


class PatchEmbed(nn.Module):
    """Images [B, 3, H, W] to tokens [B, ceil(H/4), ceil(W/4), C]: padding, convolution, norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
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
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Derived from the window alone, so it is no part of the state.
        self.register_buffer("position_index", relative_position_index(window), persistent=False)

    def bias(self) -> Tensor:
        """The relative position bias [heads, N, N] of the N = window² tokens of a window."""
        tokens = self.window**2
        table = self.relative_position_bias_table[self.position_index]
        return table.view(tokens, tokens, self.num_heads).permute(2, 0, 1)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend within [B, nW, N, C]; ``mask`` [nW, N, N] is added to the attention's logits."""
        batch, count, tokens, dim = windows.shape
        qkv = self.qkv(windows).view(batch * count, tokens, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.bias().to(query.dtype)[None]
        if mask is not None:
            bias = bias + mask.to(query.dtype)[:, None]
            bias = bias.repeat(batch, 1, 1, 1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(batch, count, tokens, dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """One Swin block: (shifted) window attention, then an MLP, each added to the residual stream.

    Args:
        dim: channels C.
        num_heads: attention heads.
        window: window side in tokens.
        shift: cyclic shift in tokens, 0 or window // 2.
        mlp_ratio: hidden width of the MLP over C.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def window_attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The (S)W-MSA sublayer on [B, H, W, C], same shape out."""
        height, width = x.shape[1:3]
        side = self.window
        x = F.pad(self.norm1(x), (0, 0, 0, -width % side, 0, -height % side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        padded = x.shape[1:3]
        x = from_windows(self.attn(to_windows(x, side), mask if self.shift else None), padded, side)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def forward(self, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Run on the residual stream [B, H, W, C].

        Returns:
            ``attended``, the attention's output; ``after_msa``, the stream after it; ``projected``,
            the MLP's output; ``after_mlp``, the stream after that; all [B, H, W, C].
        """
        attended = self.window_attention(x, mask)
        after_msa = x + attended
        projected = self.mlp(self.norm2(after_msa))
        return {
            "attended": attended,
            "after_msa": after_msa,
            "projected": projected,
            "after_mlp": after_msa + projected,
        }


class PatchMerging(nn.Module):
    """Downsampling by two: each 2×2 tokens are joined, normalised and reduced to 2C channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """[B, H·W, C] → [B, ceil(H/2)·ceil(W/2), 2C]; odd maps are padded with zeros."""
        return self.reduction(self._join(x, height, width))

    def difference(self, x: Tensor, base: Tensor, height: int, width: int) -> Tensor:
        """``self(x) − self(base)``, with the subtraction before the linear reduction.

        In half precision the two results would agree in most of their digits, and their difference
        would be rounding noise; here it is exactly zero for equal inputs in any precision.
        """
        base = base.to(x.dtype)  # or the norms of the two would round differently
        return self.reduction(self._join(x, height, width) - self._join(base, height, width))

    def _join(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.norm(self.corners(x, height, width))

    @staticmethod
    def corners(x: Tensor, height: int, width: int) -> Tensor:
        """[B, H·W, C] → [B, ceil(H/2)·ceil(W/2), 4C]: each 2×2 tokens side by side, unnormed."""
        x = x.unflatten(1, (height, width))
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return torch.cat(corners, dim=-1).flatten(1, 2)


class SwinStage(nn.Module):
    """The blocks of one stage, shifted windows in every second, and its patch merging."""

    def __init__(self, preset: SwinPreset, index: int):
        super().__init__()
        dim, heads = preset.dims[index], preset.num_heads[index]
        self.window = preset.window
        self.shift = preset.window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, preset.window, self.shift * (block % 2), preset.mlp_ratio)
            for block in range(preset.depths[index])
        )
        last = index + 1 == len(preset.depths)
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor, index: int, taps: str | None, fast: bool = False) -> Stage:
        """Run the stage on [B, H, W, C]; see :meth:`SwinTrunk.stages` for ``taps``.

        ``fast``: by :mod:`e3va.swin.fast_trunk` in the type of ``x``, instead of by the plain modules.
        """
        height, width = x.shape[1:3]
        of_msa, of_mlp = _TAPPED[taps]
        run = fast_trunk.run_blocks if fast else self._run_blocks
        values = run(self.blocks, x, tuple(filter(None, (of_msa, of_mlp))))
        out, merged = values["after_mlp"][-1], None
        if self.downsample is not None:
            merge = fast_trunk.merge if fast else PatchMerging.__call__
            merged = merge(self.downsample, out, height, width)
        return Stage(
            index, values.get(of_msa, []), values.get(of_mlp, []), out, merged, height, width
        )

    def _run_blocks(
        self, blocks: nn.ModuleList, x: Tensor, keep: tuple[str, ...]
    ) -> dict[str, list[Tensor]]:
        """The reference that :func:`e3va.swin.fast_trunk.run_blocks` equals."""
        mask = shift_mask(*x.shape[1:3], self.window, self.shift, x.device)
        outputs: dict[str, list[Tensor]] = {name: [] for name in keep}
        for block in blocks:
            values = block(x, mask)
            x = values["after_mlp"]
            for name in keep:
                outputs[name].append(values[name].flatten(1, 2))
        outputs.setdefault("after_mlp", [x.flatten(1, 2)])
        return outputs


class SwinTrunk(nn.Module):
    """A Swin Transformer that turns images into stages, one after another.

    Frozen (the default), it runs without autograd, its parameters never require grad, and it stays
    in evaluation mode whatever ``train()`` says. ``frozen=False`` makes it an ordinary trainable
    Swin, the ``full`` fine-tuning that the highway is compared with. It has neither dropout nor
    stochastic depth: a frozen trunk never uses them.

    Args:
        preset: a name of :data:`e3va.swin.presets.PRESETS`, or a geometry.
        frozen: whether the trunk is outside autograd.
        fast: whether a frozen trunk computes its stages by :mod:`e3va.swin.fast_trunk`, or by the plain
            modules below.
        precision: in which type it does so, see :mod:`e3va.swin.precision`; the plain modules compute in
            the types of their inputs and weights, and as autocast has it.

    Raises:
        UserError: no such preset or precision.
    """

    def __init__(
        self,
        preset: str | SwinPreset = "swin_t",
        *,
        frozen: bool = True,
        fast: bool = True,
        precision: str = "auto",
    ):
        super().__init__()
        check_precision(precision)
        self.preset = get_preset(preset)
        self.frozen = frozen
        self.fast = fast
        self.precision = precision
        self.origin = None  # a TrunkOrigin, set by what loads weights (e3va.weights)
        self.patch_embed = PatchEmbed(self.preset.embed_dim)
        self.absolute_pos_embed = None
        if self.preset.absolute_position:
            side = self.preset.pretrain_size // PATCH
            grid = torch.zeros(1, self.preset.embed_dim, side, side)
            self.absolute_pos_embed = nn.Parameter(grid)
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.layers = nn.ModuleList(
            SwinStage(self.preset, index) for index in range(len(self.preset.depths))
        )
        self.apply(_init_linear)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    @property
    def patch_mergings(self) -> list[PatchMerging | None]:
        """PM_s of each stage; None for the last."""
        return [layer.downsample for layer in self.layers]

    def train(self, mode: bool = True) -> "SwinTrunk":
        """Set the training mode; a frozen trunk stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def stages(
        self, images: Tensor, taps: str | None = "block", count: int | None = None
    ) -> Iterator[Stage]:
        """Run forward, giving each stage as soon as it is computed.

        Args:
            images: [B, 3, H, W], normalised as the trunk's pretraining was; any H, W ≥ 1.
            taps: ``"block"``, the residual stream after each block; ``"residual"``, the same after
                each sublayer; ``"sublayer"``, the sublayers' outputs before they are added; None,
                no taps at all.
            count: how many stages to run, all by default.

        Raises:
            UserError: an unknown ``taps``, or images of another shape.
        """
        if taps is not None and taps not in TAPS:
            raise UserError(f"taps {taps!r}: expected one of {TAPS}, or None")
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise UserError(f"images of shape {list(images.shape)}: expected [B, 3, H, W]")
        fast = self.fast and self.frozen
        run = self._run_fast if fast else self._run
        dtype = self._compute_dtype(images) if fast else None
        x = run(self._embed, images, dtype)
        for index, layer in enumerate(self.layers[:count]):
            stage = run(layer, x, index, taps, fast)
            if stage.merged is not None:
                x = stage.merged.unflatten(1, (-(-stage.height // 2), -(-stage.width // 2)))
            yield stage
            del stage  # the consumer decides what lives on

    def _run(self, function, *args):
        # Not around the generator: modes set across a yield would leak into the consumer.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return function(*args)

    def _run_fast(self, function, *args):
        # Its types are its own: autocast would cast weights anew in every pass.
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            return function(*args)

    def _embed(self, images: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Tokens [B, H, W, C]; of type ``dtype`` by the fast form, None for the plain one."""
        if dtype is not None:
            return fast_trunk.embed(self, images, dtype)
        x = self.patch_embed(images)
        return x if self.absolute_pos_embed is None else x + self.position_grid(*x.shape[1:3])

    def _compute_dtype(self, images: Tensor) -> torch.dtype:
        own = self.patch_embed.proj.weight.dtype
        if own is torch.float64:
            return own
        mixed = torch.is_autocast_enabled(images.device.type)
        return compute_dtype(self.precision, images.device, mixed)

    def position_grid(self, height: int, width: int) -> Tensor:
        """The absolute position embedding, interpolated to [1, H, W, C]."""
        grid = self.absolute_pos_embed
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32))  # it may be kept in half
        grid = F.interpolate(grid, size=(height, width), mode="bicubic")
        return grid.permute(0, 2, 3, 1)

    def check_frozen(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Prove that no parameter of the trunk can change.

        Raises:
            TrunkNotFrozenError: one requires grad, has a ``.grad``, or sits in ``optimizer``.
        """
        optimized = set()
        if optimizer is not None:
            optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                raise TrunkNotFrozenError(f"trunk parameter {name} requires grad")
            if parameter.grad is not None:
                raise TrunkNotFrozenError(f"trunk parameter {name} got a gradient")
            if id(parameter) in optimized:
                raise TrunkNotFrozenError(f"trunk parameter {name} is in the optimizer")


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
