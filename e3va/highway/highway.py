"""The highway: where the adapters' outputs add up beside the trunk.

It consumes the trunk's stages one after another and knows nothing of how they are made; gradients
run along it alone (arXiv 2306.09729, figure 2).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..ops.saved_activation import FORMS as KEPT_FORMS
from ..swin.trunk import PatchMerging, Stage
from ..utils.errors import UserError
from . import fast_chain as fast_highway
from . import fast_parallel
from . import token_map as maps
from .adapters.conv import MixingAdapter

DOWNSAMPLE_FORMS = ("offset", "direct")
FORMS = ("parallel", "chain")


class HighwayStage(nn.Module):
    """The trained modules of one stage: an adapter for each tap, and the pyramid norm.

    Args:
        dim: channels C_s.
        depth: blocks L_s.
        make_adapter: ``dim -> module`` that maps (tap [B, T, C], H, W) to [B, T, C]; None builds
            no adapters (a ``frozen`` backbone).
        out_norm: whether this stage is a pyramid level and so has a norm.
        taps: see :meth:`e3va.swin.trunk.SwinTrunk.stages`; ``"block"`` has no ``msa`` taps.
        form: ``"parallel"`` or ``"chain"``, see :class:`Highway`.
        keep: see :class:`Highway`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        make_adapter: Callable[[int], nn.Module] | None,
        out_norm: bool,
        taps: str | None = "block",
        form: str = "chain",
        keep: str | None = "half",
    ):
        super().__init__()
        count = depth if make_adapter else 0
        self.msa = nn.ModuleList(make_adapter(dim) for _ in range(count if taps != "block" else 0))
        self.mlp = nn.ModuleList(make_adapter(dim) for _ in range(count))
        self.chained = form == "chain"
        self.keep = keep
        # Not called "norm": the classification norm of published Swin files ends in "norm.weight"
        # and Detectron2 matches names by their endings when asked to.
        self.out_norm = nn.LayerNorm(dim) if out_norm else None

    def forward(self, stage: Stage, h: Tensor | None) -> Tensor | None:
        """``h_s^in`` [B, T, C] → ``h_s`` [B, T, C]; None stands for zero.

        The sum is at least float32, also under autocast: it is small beside the residual stream
        that it is added to.
        """
        adapters = _interleave(self.msa, self.mlp)
        taps = _interleave(stage.msa, stage.mlp)
        run = self._fast_form(adapters) if self._keeps(stage) else None
        if run is not None:
            size = maps.describe(stage, next(adapters[0].parameters()), self.keep)
            return run(adapters, taps, size, h)
        for adapter, tap in zip(adapters, taps, strict=bool(adapters)):
            z = tap + h if self.chained and h is not None else tap
            offset = adapter(z, stage.height, stage.width)
            h = _at_least_float32(offset) if h is None else _at_least_float32(h) + offset
        return h

    def _fast_form(self, adapters: Sequence[nn.Module]) -> Callable | None:
        if adapters and self.chained and fast_highway.is_chain(adapters):
            return fast_highway.run_chain
        if adapters and not self.chained and fast_parallel.is_parallel(adapters):
            return fast_parallel.run_parallel
        return None

    def _keeps(self, stage: Stage) -> bool:
        # The hand-written passes know no gradient of the trunk: one that trains is autograd's.
        return self.keep is not None and not stage.out.requires_grad

    def join(
        self, stage: Stage, h: Tensor | None, patch_merging: PatchMerging | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """``LN_s(x_s + h_s)`` as a map, and ``PM_s(x_s + h_s) − PM_s(x_s)``.

        None for what is not there: the norm, ``patch_merging``.
        """
        norm = self.out_norm
        if self._keeps(stage) and (norm is not None or len(self.mlp)):
            parameter = next(self.parameters())
            size = maps.describe(stage, parameter, self.keep)
            return fast_highway.join(stage.out, h, norm, patch_merging, size)
        joined, out, after = stage.out if h is None else stage.out + h, None, None
        if norm is not None:
            out = norm(_at_least_float32(joined)).transpose(1, 2)
            out = out.unflatten(2, (stage.height, stage.width)).contiguous()
        if patch_merging is not None:
            after = patch_merging.difference(joined, stage.out, stage.height, stage.width)
        return out, after


def _interleave(msa: Iterable, mlp: Sequence) -> list:
    """In the order of the blocks."""
    msa = list(msa)
    return [item for pair in zip(msa, mlp, strict=True) for item in pair] if msa else list(mlp)


class Highway(nn.Module):
    """Highway over the stages of a trunk.

    In stage s, with the taps a (``msa``, if there are any) and m (``mlp``) of its blocks::

        h_s        = h_s^in + Σ_l [A^msa_{s,l}(a_{s,l}) + A^mlp_{s,l}(m_{s,l})],   h_0^in = 0
        out_s      = LN_s(x_s + h_s)
        h_{s+1}^in = PM_s(x_s + h_s) − PM_s(x_s)      downsample="offset"
                   = PM_s(h_s)                        downsample="direct", the paper's figure

    PM_s is the trunk's own frozen patch merging: the highway uses it and holds no copy.

    That is the paper's ``form="parallel"``. In ``form="chain"`` an adapter reads its tap as the
    highway has changed it so far, much as it would stand in a trunk that trains::

        h ← h + A_{s,l}(z_{s,l} + h)   for the taps z of a stage in their order, from h_s^in to h_s

    Args:
        dims: channels C_s of the trunk's stages.
        depths: blocks L_s of the trunk's stages.
        out_stages: the stages that are pyramid levels, ascending.
        make_adapter: ``dim -> module`` (tap [B, T, C], H, W) → [B, T, C]; None for none at all.
        taps: which taps it will be given, see :meth:`e3va.swin.trunk.SwinTrunk.stages`.
        form: ``"parallel"`` or ``"chain"``.
        downsample: ``"offset"`` or ``"direct"``.
        keep: how taps are kept for the backward pass, one of :data:`e3va.ops.saved_activation.FORMS`: gradients
            are then those of :mod:`e3va.highway.fast_chain` for a chain of :class:`e3va.MixingAdapter`
            and of :mod:`e3va.highway.fast_parallel` for :class:`e3va.Adapter` in parallel. None leaves them
            to autograd, as they are for all others.

    Raises:
        UserError: an unknown ``form``, ``downsample`` or ``keep``, or ``out_stages`` that the trunk
            does not have.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        make_adapter: Callable[[int], nn.Module] | None = MixingAdapter,
        taps: str | None = "block",
        form: str = "chain",
        downsample: str = "offset",
        keep: str | None = "half",
    ):
        super().__init__()
        if downsample not in DOWNSAMPLE_FORMS:
            raise UserError(f"downsample {downsample!r}: expected one of {DOWNSAMPLE_FORMS}")
        if form not in FORMS:
            raise UserError(f"form {form!r}: expected one of {FORMS}")
        if keep is not None and keep not in KEPT_FORMS:
            raise UserError(f"keep {keep!r}: expected one of {KEPT_FORMS}, or None")
        out_stages = tuple(out_stages)
        if not out_stages or any(s not in range(len(dims)) for s in out_stages):
            raise UserError(f"out_stages {out_stages}: expected some of {tuple(range(len(dims)))}")
        self.downsample = downsample
        self.out_stages = out_stages
        # Stages after the last pyramid level would train nothing: they are not built.
        self.stages = nn.ModuleList(
            HighwayStage(dims[s], depths[s], make_adapter, s in out_stages, taps, form, keep)
            for s in range(max(out_stages) + 1)
        )

    def advance(
        self, stage: Stage, h_in: Tensor | None, patch_merging: PatchMerging | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Consume one stage.

        Args:
            stage: the trunk's stage s.
            h_in: ``h_s^in`` [B, T_s, C_s], None for zero.
            patch_merging: PM_s, None after the last stage.

        Returns:
            ``out_s`` [B, C_s, H_s, W_s] (None if stage s is no pyramid level) and ``h_{s+1}^in``
            [B, T_{s+1}, C_{s+1}] (None for zero). With these two in hand any number of highways
            can share one pass of a trunk.
        """
        own = self.stages[stage.index]
        h = own(stage, h_in)
        goes_on = h is not None and stage.index + 1 < len(self.stages)
        merging = patch_merging if goes_on else None
        if self.downsample == "offset":
            return own.join(stage, h, merging)
        out, _ = own.join(stage, h, None)
        return out, merging and merging(h, stage.height, stage.width)

    def forward(
        self, stages: Iterable[Stage], patch_mergings: Sequence[PatchMerging | None]
    ) -> list[Tensor]:
        """Consume a trunk's stages as they come.

        Returns:
            ``out_s`` [B, C_s, H_s, W_s] for each s of ``out_stages``, in ascending order.
        """
        outputs, h = [], None
        for stage in stages:
            out, h = self.advance(stage, h, patch_mergings[stage.index])
            if out is not None:
                outputs.append(out)
            del stage  # or its taps would live on while the trunk computes the next stage
        return outputs


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
