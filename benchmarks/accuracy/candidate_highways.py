"""Highways of the candidates: subclasses of the highway that run or end a stage in another way."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e3va import E3VABackbone, Highway, StageOutput, SwinTrunk
from e3va.highway.adapters.conv import DepthwiseConvAdapter
from e3va.ops.normalize import EPS, normalize
from e3va.swin.modules import PatchMerging, SwinBlock
from e3va.swin.windows import shift_mask

TEMPERATURE = 0.1  # of learned gates, as in arXiv 2206.06522


class StageHighway(Highway):
    """A highway in the offset form; subclasses replace :meth:`run_stage`."""

    def run_stage(self, stage: StageOutput, h: Tensor | None) -> Tensor | None:
        """Map ``h_s^in`` [B, T, C] to ``h_s`` [B, T, C]; None stands for zero."""
        return self.stages[stage.index](stage, h)

    def advance(self, stage: StageOutput, h_in: Tensor | None, patch_merging: nn.Module | None):
        """Consume one stage, see :meth:`e3va.Highway.advance`."""
        h = self.run_stage(stage, h_in)
        return self.stages[stage.index].join(stage, h, None if h is None else patch_merging)


class ReadingHighway(StageHighway):
    """A chain in which :meth:`read` decides what the adapter of a block reads."""

    def run_stage(self, stage: StageOutput, h: Tensor | None) -> Tensor | None:
        """Run ``h ← h + A_l(read(l))`` for the blocks l of a stage."""
        for block, adapter in enumerate(self.stages[stage.index].mlp):
            offset = adapter(self.read(stage, block, h), stage.height, stage.width)
            h = offset if h is None else h + offset
        return h

    def read(self, stage: StageOutput, block: int, h: Tensor | None) -> Tensor:
        """Return the input [B, T, C] of a block's adapter."""
        raise NotImplementedError


class DetachedHighway(ReadingHighway):
    """A chain whose adapters read the highway outside autograd: no gradient through D and norm."""

    def read(self, stage: StageOutput, block: int, h: Tensor | None) -> Tensor:
        """Return the sum of the tap and the highway's value."""
        return stage.mlp[block] if h is None else stage.mlp[block] + h.detach()


class TapNormHighway(ReadingHighway):
    """A chain whose adapters norm ``z + h`` with mean and deviation of the tap z.

    Its gradient is that of a product with a constant, so nothing of width C is kept for it.
    """

    def read(self, stage: StageOutput, block: int, h: Tensor | None) -> Tensor:
        """Return the normed sum of tap and highway."""
        tap = stage.mlp[block]
        variance, mean = torch.var_mean(tap.float(), -1, correction=0, keepdim=True)
        return ((tap if h is None else tap + h) - mean) * (variance + EPS).rsqrt()


class MixedTapsHighway(ReadingHighway):
    """A chain whose adapters read a learned mean of all taps of their stage, plus the highway.

    D is linear, so the mean before D is the mean after it. The weights are a softmax with
    temperature over gates, and start with most of the weight on the block's own tap.
    """

    def __init__(self, dims: Sequence[int], depths: Sequence[int], *args, **kwargs):
        super().__init__(dims, depths, *args, **kwargs)
        self.gates = nn.ParameterList(3 * TEMPERATURE * torch.eye(depth) for depth in depths)

    def read(self, stage: StageOutput, block: int, h: Tensor | None) -> Tensor:
        """Return the mean of the taps plus the highway."""
        weights = (self.gates[stage.index][block] / TEMPERATURE).softmax(0)
        mean = sum(weight * tap for weight, tap in zip(weights, stage.mlp, strict=True))
        return mean if h is None else mean + h


class SecondPassHighway(StageHighway):
    """A highway with one more adapter J at the end of each stage: ``h_s ← h_s + J_s(x_s + h_s)``.

    Args:
        dims: channels C_s.
        args: arguments of :class:`e3va.Highway`.
        second: rank of J.
        kernel: side of the convolution in J.
        kwargs: keyword arguments of :class:`e3va.Highway`.
    """

    def __init__(self, dims: Sequence[int], *args, second: int, kernel: int, **kwargs):
        super().__init__(dims, *args, **kwargs)
        self.second = nn.ModuleList(DepthwiseConvAdapter(dim, second, kernel) for dim in dims)

    def run_stage(self, stage: StageOutput, h: Tensor | None) -> Tensor | None:
        """Run the chain, then J."""
        h = super().run_stage(stage, h)
        joined = stage.out if h is None else stage.out + h
        offset = self.second[stage.index](joined, stage.height, stage.width)
        return offset if h is None else h + offset


class CopyHighway(StageHighway):
    """A highway on which a trained copy B of a stage's last block replaces the last adapter.

    The chain ends before the last block with h; then ``h_s = B(z + h) − x_s`` with the tap z of the
    block before. As x_s is the trunk's own ``B(z)``, the copy starts as the identity, to rounding.

    Args:
        dims: channels C_s.
        depths: blocks L_s.
        args: arguments of :class:`e3va.Highway`.
        copied: the stages with a copy.
        heads: attention heads of each stage.
        window: side of a window.
        kwargs: keyword arguments of :class:`e3va.Highway`.
    """

    def __init__(self, dims, depths, *args, copied: Sequence[int], heads, window: int, **kwargs):
        super().__init__(dims, depths, *args, **kwargs)
        self.copies = nn.ModuleDict()
        for s in copied:
            shift = window // 2 * ((depths[s] - 1) % 2)
            self.copies[str(s)] = SwinBlock(dims[s], heads[s], window, shift, mlp_ratio=4)
            self.stages[s].mlp = self.stages[s].mlp[:-1]
        self.register_buffer("started", torch.tensor(False))

    def start(self, trunk: SwinTrunk) -> None:
        """Copy the weights of the trunk's last blocks, once."""
        if self.started:
            return
        for s, copy in self.copies.items():
            copy.load_state_dict(trunk.layers[int(s)].blocks[-1].state_dict())
        self.started.fill_(True)

    def run_stage(self, stage: StageOutput, h: Tensor | None) -> Tensor | None:
        """Run the chain, then the copy."""
        key = str(stage.index)
        if key not in self.copies:
            return super().run_stage(stage, h)
        copy, size = self.copies[key], (stage.height, stage.width)
        h = super().run_stage(replace(stage, mlp=stage.mlp[:-1]), h)
        mask = shift_mask(*size, copy.window, copy.shift, stage.out.device) if copy.shift else None
        after = copy((stage.mlp[-2] + h).unflatten(1, size), mask)["after_mlp"]
        return after.flatten(1, 2) - stage.out


class CopyBackbone(E3VABackbone):
    """A backbone with :class:`CopyHighway`, which starts when the trunk's weights are loaded."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to the pyramid, see :class:`e3va.E3VABackbone`."""
        self.highway.start(self.trunk)
        return super().forward(images)


class SideBlock(nn.Module):
    """A narrow Swin block that reads a gated mean of its tap, projected, and the side stream."""

    def __init__(self, dim: int, rank: int, window: int = 7):
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.gate = nn.Parameter(torch.zeros(()))
        self.block = SwinBlock(rank, 1, window, shift=0, mlp_ratio=2)

    def forward(self, tap: Tensor, side: Tensor | None, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] and the side stream [B, T, r] to the side stream."""
        y = self.down(normalize(tap))
        side = torch.zeros_like(y) if side is None else side
        y = side + (self.gate / TEMPERATURE).sigmoid() * (y - side)
        shift = self.block.shift
        mask = shift_mask(height, width, self.block.window, shift, y.device) if shift else None
        return self.block(y.unflatten(1, (height, width)), mask)["after_mlp"].flatten(1, 2)


class SideHighway(Highway):
    """A side network (arXiv 2206.06522): a narrow stream with own blocks and own patch mergings.

    Each stage ends with ``h_s = U_s · side``. Its ``make_adapter`` makes :class:`SideBlock`.

    Args:
        dims: channels C_s.
        args: arguments of :class:`e3va.Highway`.
        width: width of the side stream in the first stage; it doubles from stage to stage.
        kwargs: keyword arguments of :class:`e3va.Highway`.
    """

    def __init__(self, dims: Sequence[int], *args, width: int, **kwargs):
        super().__init__(dims, *args, **kwargs)
        widths = [width * 2**s for s in range(len(dims))]
        self.merges = nn.ModuleList(PatchMerging(w) for w in widths[:-1])
        self.up = nn.ModuleList(nn.Linear(*sizes) for sizes in zip(widths, dims, strict=True))
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)
        for own in self.stages:
            for side_block in own.mlp[1::2]:
                side_block.block.shift = side_block.block.window // 2

    def advance(self, stage: StageOutput, h_in: Tensor | None, patch_merging: nn.Module | None):
        """Consume one stage; between stages goes the side stream instead of the highway."""
        own, side = self.stages[stage.index], h_in
        for block, tap in zip(own.mlp, stage.mlp, strict=True):
            side = block(tap, side, stage.height, stage.width)
        out, _ = own.join(stage, self.up[stage.index](side), None)
        if patch_merging is None:
            return out, None
        return out, self.merges[stage.index](side, stage.height, stage.width)


class TopDownAdapter(DepthwiseConvAdapter):
    """The default adapter on the end of a stage, which also reads the next stage through E."""

    def __init__(self, dim: int, rank: int, kernel: int):
        super().__init__(dim, rank, kernel)
        self.above = nn.Linear(2 * dim, rank, bias=False)

    def forward(self, z: Tensor, height: int, width: int, above: Tensor) -> Tensor:
        """Map z [B, H·W, C] and the next stage's output [B, H', W', 2C] to [B, H·W, C]."""
        y = self.down(normalize(z)).transpose(1, 2).unflatten(2, (height, width))
        coarse = self.above(normalize(above)).permute(0, 3, 1, 2)
        y = y + F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        return self.up(F.gelu(y + self.mix(y)).flatten(2).transpose(1, 2))


class TopDownHighway(Highway):
    """A highway that goes back from the last stage to the first, with one more adapter a stage.

    Args:
        dims: channels C_s.
        args: arguments of :class:`e3va.Highway`.
        second: rank of the adapters on the way back.
        kernel: side of the convolution in them.
        kwargs: keyword arguments of :class:`e3va.Highway`.
    """

    def __init__(self, dims: Sequence[int], *args, second: int, kernel: int, **kwargs):
        super().__init__(dims, *args, **kwargs)
        self.back = nn.ModuleList(TopDownAdapter(dim, second, kernel) for dim in dims[:-1])

    def forward(
        self, stages: Iterable[StageOutput], patch_mergings: Sequence[PatchMerging | None]
    ) -> list[Tensor]:
        """Consume all stages, then go back; see :meth:`e3va.Highway.forward`."""
        ends, h = [], None
        for stage in stages:
            own, merging = self.stages[stage.index], patch_mergings[stage.index]
            h = own(stage, h)
            ends.append((replace(stage, msa=[], mlp=[], merged=None), h))
            if merging is not None:
                _, h = own.join(stage, h, merging)
            del stage
        outputs, above = [], None
        for stage, h in reversed(ends):
            size = stage.height, stage.width
            if above is not None:
                h = h + self.back[stage.index](stage.out + h, *size, above)
            above = (stage.out + h).unflatten(1, size)
            outputs.append(self.stages[stage.index].join(stage, h, None)[0])
        return outputs[::-1]


class StandardOutHighway(StageHighway):
    """A highway whose pyramid norms start from the trunk's statistics.

    In the first training batch each norm gets the weight 1/σ_c and the bias −μ_c/σ_c, with mean
    and deviation of channel c of the normed x_s, so that all channels start with equal strength.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("fitted", torch.zeros(len(self.stages), dtype=torch.bool))

    def advance(self, stage: StageOutput, h_in: Tensor | None, patch_merging: nn.Module | None):
        """Consume one stage, see :meth:`e3va.Highway.advance`."""
        if self.training and not self.fitted[stage.index]:
            self._fit(stage)
        return super().advance(stage, h_in, patch_merging)

    @torch.no_grad()
    def _fit(self, stage: StageOutput) -> None:
        norm, x = self.stages[stage.index].out_norm, normalize(stage.out.float())
        deviation, mean = torch.std_mean(x.flatten(0, 1), 0)
        deviation = deviation.clamp_min(1e-3)
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-mean / deviation)
        self.fitted[stage.index] = True


class PowerNorm(nn.LayerNorm):
    """LayerNorm times a trained power of the token's deviation, relative to those in its image.

    The power starts at 0; 1 would be the plain input but for one factor for each image.
    """

    def __init__(self, dim: int):
        super().__init__(dim)
        self.power = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, C]."""
        x = x.float()
        level = (x.var(-1, correction=0, keepdim=True) + self.eps).log() / 2
        strength = (self.power * (level - level.mean(1, keepdim=True))).exp()
        return torch.addcmul(self.bias, normalize(x) * strength, self.weight)


class PowerOutHighway(StageHighway):
    """A highway with :class:`PowerNorm` for the pyramid norms."""

    def __init__(self, dims: Sequence[int], *args, **kwargs):
        super().__init__(dims, *args, **kwargs)
        # Under this name the norms train at the learning rate of the heads, as those they replace.
        self.out_norm = nn.ModuleList(map(PowerNorm, dims))
        for own in self.stages:
            own.out_norm = None

    def advance(self, stage: StageOutput, h_in: Tensor | None, patch_merging: nn.Module | None):
        """Consume one stage, see :meth:`e3va.Highway.advance`."""
        h = self.run_stage(stage, h_in)
        _, after = self.stages[stage.index].join(stage, h, patch_merging)
        out = self.out_norm[stage.index](stage.out + h).transpose(1, 2)
        return out.unflatten(2, (stage.height, stage.width)).contiguous(), after
