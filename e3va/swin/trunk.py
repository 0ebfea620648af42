"""The trunk: a Swin Transformer that runs forward once, without autograd, and yields its taps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import UserError, check_choice
from . import fast_trunk
from .modules import PATCH, PatchEmbed, PatchMerging, SwinBlock, init_linear, unchanged
from .precision import PRECISIONS, compute_dtype
from .presets import SwinPreset, get_preset
from .shared_passes import passes_of
from .windows import shift_mask

TAPS = ("block", "residual", "sublayer")
# Which of a block's values, see SwinBlock.forward, are the taps of its attention and its MLP.
TAPPED = {
    "block": (None, "after_mlp"),
    "residual": ("after_msa", "after_mlp"),
    "sublayer": ("attended", "projected"),
    None: (None, None),
}


class TrunkNotFrozenError(RuntimeError):
    """A frozen trunk's parameter requires grad, has a gradient, or is in an optimizer."""


@dataclass
class StageOutput:
    """The output of one stage s of the trunk. With a frozen trunk no tensor requires grad.

    Attributes:
        index: s.
        msa: taps [B, T_s, C_s] of the window attentions, one for each block; empty with the taps
            ``"block"``.
        mlp: taps [B, T_s, C_s] of the MLPs, one for each block.
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


class SwinStage(nn.Module):
    """The blocks of one stage, every second one with shifted windows, and its patch merging."""

    def __init__(self, preset: SwinPreset, index: int):
        super().__init__()
        dim, heads = preset.dims[index], preset.num_heads[index]
        self.window, self.shift = preset.window, preset.window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, preset.window, self.shift * (block % 2), preset.mlp_ratio)
            for block in range(preset.depths[index])
        )
        last = index + 1 == len(preset.depths)
        self.downsample = None if last else PatchMerging(dim)

    def forward(
        self,
        x: Tensor,
        index: int,
        taps: str | None,
        fast: bool = False,
        changes: Sequence[Callable] | None = None,
    ) -> StageOutput:
        """Run the stage on [B, H, W, C], by :mod:`e3va.swin.fast_trunk` if ``fast``.

        ``changes`` holds a function for each block, see :func:`e3va.swin.modules.unchanged`.
        """
        height, width = x.shape[1:3]
        msa, mlp = TAPPED[taps]
        kept: dict[str, list[Tensor]] = {name: [] for name in (msa, mlp) if name}
        mask = None if fast else shift_mask(height, width, self.window, self.shift, x.device)
        changes = changes or [unchanged] * len(self.blocks)
        for block, change in zip(self.blocks, changes, strict=True):
            values = fast_trunk.run_block(block, x, kept.keys()) if fast else block(x, mask, change)
            x = values["after_mlp"]
            for name, tensors in kept.items():
                tensors.append(values[name].flatten(1, 2))
        out = kept["after_mlp"][-1] if "after_mlp" in kept else x.flatten(1, 2)
        merged = None
        if self.downsample is not None:
            merge = fast_trunk.merge if fast else PatchMerging.__call__
            merged = merge(self.downsample, out, height, width)
        return StageOutput(index, kept.get(msa, []), kept.get(mlp, []), out, merged, height, width)


class SwinTrunk(nn.Module):
    """A Swin Transformer that turns images into stages, one after another.

    A frozen trunk (the default) runs without autograd, its parameters never require grad, and it
    stays in evaluation mode after any call of ``train()``. With ``frozen=False`` it is an ordinary
    trainable Swin, for full fine-tuning. It has neither dropout nor stochastic depth.

    Args:
        preset: name in :data:`e3va.swin.presets.PRESETS`, or a geometry.
        frozen: whether the trunk is outside autograd.
        fast: whether a frozen trunk runs in the form of :mod:`e3va.swin.fast_trunk` instead of the
            plain modules.
        precision: type in which the fast form computes, see :mod:`e3va.swin.precision`. Plain
            modules compute in the types of their inputs and weights, and follow autocast.

    Raises:
        UserError: an unknown preset or precision.
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
        check_choice("trunk_precision", precision, PRECISIONS)
        self.preset = get_preset(preset)
        self.frozen, self.fast, self.precision = frozen, fast, precision
        self.origin = None  # a TrunkOrigin; e3va.weights sets it when it loads weights
        self.loaded = False  # whether weights were loaded into it
        self.patch_embed = PatchEmbed(self.preset.embed_dim)
        self.absolute_pos_embed = None
        if self.preset.absolute_position:
            side = self.preset.pretrain_size // PATCH
            grid = torch.zeros(1, self.preset.embed_dim, side, side)
            self.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(grid, std=0.02))
        stages = range(len(self.preset.depths))
        self.layers = nn.ModuleList(SwinStage(self.preset, index) for index in stages)
        self.apply(init_linear)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "patch_embed.proj.weight" in state_dict:
            self.loaded = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def patch_mergings(self) -> list[PatchMerging | None]:
        """PM_s of each stage; None for the last."""
        return [layer.downsample for layer in self.layers]

    def train(self, mode: bool = True) -> "SwinTrunk":
        """Set the training mode; a frozen trunk stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def stages(
        self,
        images: Tensor,
        taps: str | None = "block",
        count: int | None = None,
        changes: Sequence[Sequence[Callable]] | None = None,
    ) -> Iterator[StageOutput]:
        """Run forward and yield each stage as soon as it is computed.

        Args:
            images: images [B, 3, H, W], normalized as in the trunk's pretraining; any H, W ≥ 1.
            taps: ``"block"``: the residual stream after each block; ``"residual"``: the residual
                stream after each sublayer; ``"sublayer"``: the sublayers' outputs before they are
                added to it; None: no taps.
            count: number of stages to run; None for all.
            changes: for each stage a function for each block, see
                :func:`e3va.swin.modules.unchanged`. With them even a frozen trunk runs by plain
                modules within autograd, because adapters inside it train; None for none.

        Raises:
            UserError: an unknown ``taps``, or images of another shape.
        """
        if taps is not None:
            check_choice("taps", taps, TAPS)
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise UserError(f"images of shape {list(images.shape)}: expected [B, 3, H, W]")
        shared = passes_of(self) if self.frozen and changes is None else None
        if shared is None:
            yield from self._stages(images, taps, count, changes)
            return
        device = images.device.type
        mode = (self.precision, self.fast, torch.is_autocast_enabled(device))
        mode += (torch.get_autocast_dtype(device),)
        yield from shared.read(
            lambda: self._stages(images, taps, None, None),
            *(images, taps, mode, len(self.layers[:count])),
        )

    def _stages(
        self,
        images: Tensor,
        taps: str | None,
        count: int | None,
        changes: Sequence[Sequence[Callable]] | None,
    ) -> Iterator[StageOutput]:
        fast = self.fast and self.frozen and changes is None
        run = self._run_fast if fast else self._run
        if changes is not None:  # the adapters inside a frozen trunk train
            run = _call
        dtype = self._compute_dtype(images) if fast else None
        x = run(self._embed, images, dtype)
        for index, layer in enumerate(self.layers[:count]):
            stage = run(layer, x, index, taps, fast, changes and changes[index])
            if stage.merged is not None:
                x = stage.merged.unflatten(1, (-(-stage.height // 2), -(-stage.width // 2)))
            yield stage
            del stage  # so that the consumer decides how long its tensors live

    def _run(self, function, *args):
        # A mode that is set around the generator would leak into the consumer at each yield.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return function(*args)

    def _run_fast(self, function, *args):
        # The fast form sets its own types; autocast would convert weights in every pass.
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            return function(*args)

    def _embed(self, images: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return tokens [B, H, W, C], by plain modules if ``dtype`` is None."""
        if dtype is None:
            x = self.patch_embed(images)
        else:
            x = fast_trunk.embed(self.patch_embed, images, dtype)
        return self.add_position(x)

    def add_position(self, x: Tensor) -> Tensor:
        """Add the absolute position embedding, if there is one, to tokens [B, H, W, C]."""
        if self.absolute_pos_embed is None:
            return x
        grid = self.absolute_pos_embed
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32))  # may be stored in half
        grid = F.interpolate(grid, size=x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        return x + grid.to(x.dtype)

    def _compute_dtype(self, images: Tensor) -> torch.dtype:
        own = self.patch_embed.proj.weight.dtype
        if own is torch.float64:
            return own
        mixed = torch.is_autocast_enabled(images.device.type)
        return compute_dtype(self.precision, images.device, mixed)

    def check_frozen(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Check that no parameter of a frozen trunk can change; do nothing for a trunk that trains.

        Raises:
            TrunkNotFrozenError: a parameter requires grad, has a gradient, or is in ``optimizer``.
        """
        if not self.frozen:
            return
        groups = optimizer.param_groups if optimizer is not None else []
        optimized = {id(p) for group in groups for p in group["params"]}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                raise TrunkNotFrozenError(f"trunk parameter {name} requires grad")
            if parameter.grad is not None:
                raise TrunkNotFrozenError(f"trunk parameter {name} got a gradient")
            if id(parameter) in optimized:
                raise TrunkNotFrozenError(f"trunk parameter {name} is in the optimizer")


def _call(function, *args):
    return function(*args)
