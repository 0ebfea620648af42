"""The highway beside the trunk, on which adapters' outputs add up (arXiv 2306.09729, figure 2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..ops.saved_activation import FORMS as SAVED_FORMS
from ..swin.modules import PatchMerging
from ..swin.trunk import StageOutput
from ..utils.errors import UserError, check_choice
from .config import DEFAULT_RECIPE, OUTSIDE, HighwayConfig, as_highway_config
from .fast_forms import TokenMap, find_fast_form
from .fast_join import join
from .frozen_matrix import FrozenMatrix
from .inside import changes_of, make_inside


class HighwayStage(nn.Module):
    """The trained modules of one stage: adapters, and for a level its norm.

    There is an adapter for each tap. If they are shared, all blocks have the same one: one in
    ``mlp``, and for taps of two kinds one in ``msa``. Adapters inside the trunk are in ``inside``;
    a side network, which reads all taps, is in ``side``.
    """

    def __init__(
        self,
        dim: int,
        blocks: Sequence[nn.Module | None],
        config: HighwayConfig,
        make_adapter: Callable[..., nn.Module] | None,
        out_norm: bool,
        keep: str | None,
        mlp_ratio: float,
    ):
        super().__init__()
        given, taps_of_a_block = config.given, 1 if config.taps == "block" else 2
        self.inside = self.side = None
        if config.inside:
            hidden, self.points = int(dim * mlp_ratio), config.points
            frozen = "frozen" in given
            self.inside = make_inside(dim, hidden, blocks, self.points, make_adapter, frozen)
        elif "tap_count" in given:
            self.side = make_adapter(dim, tap_count=taps_of_a_block * len(blocks))
        on_highway = make_adapter is not None and self.inside is None and self.side is None
        own = list(blocks[:1] if config.shared else blocks) if on_highway else []

        def make(block: nn.Module | None) -> nn.Module:
            frozen = {"frozen": FrozenMatrix(block)} if "frozen" in given else {}
            return make_adapter(dim, **frozen)

        self.msa = nn.ModuleList(map(make, own if taps_of_a_block == 2 else []))
        self.mlp = nn.ModuleList(map(make, own))
        self.form, self.shared = config.form, config.shared
        self.keep = keep
        # Not called "norm": the classification norm of published Swin files ends in "norm.weight",
        # and Detectron2 can match names by their endings.
        self.out_norm = nn.LayerNorm(dim) if out_norm else None

    def forward(self, stage: StageOutput, h: Tensor | None) -> Tensor | None:
        """Map ``h_s^in`` [B, T, C] to ``h_s`` [B, T, C]; None stands for zero.

        The sum is at least float32, also under autocast, because the adapters' outputs are small
        beside the residual stream.
        """
        taps = _interleave(stage.msa, stage.mlp)
        if self.side is not None:
            return _at_least_float32(self.side(taps, h, stage.height, stage.width))
        adapters = _interleave(self.msa, self.mlp)
        if self.shared:
            adapters *= len(stage.mlp)
        size = self._token_map(stage)
        run = find_fast_form(self.form, adapters) if size else None
        if run is not None:
            return run(adapters, taps, size, h)
        for adapter, tap in zip(adapters, taps, strict=bool(adapters)):
            z = tap + h if self.form == "chain" and h is not None else tap
            offset = adapter(z, stage.height, stage.width)
            h = _at_least_float32(offset) if h is None else _at_least_float32(h) + offset
        return h

    def _token_map(self, stage: StageOutput) -> TokenMap | None:
        """Return the token map for a fast form; None where plain modules must run."""
        parameter = next(self.parameters(), None)
        # The fast forms compute no gradient for the trunk.
        if self.keep is None or parameter is None or stage.out.requires_grad:
            return None
        return TokenMap.of(stage, parameter, self.keep)

    def join(
        self, stage: StageOutput, h: Tensor | None, patch_merging: PatchMerging | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return ``LN_s(x_s + h_s)`` as a map, and ``PM_s(x_s + h_s) − PM_s(x_s)``.

        The first is None for a stage without a norm, the second without ``patch_merging``.
        """
        norm, size = self.out_norm, self._token_map(stage)
        if size is not None:
            return join(stage.out, h, norm, patch_merging, size)
        joined, out, after = stage.out if h is None else stage.out + h, None, None
        if norm is not None:
            out = norm(_at_least_float32(joined)).transpose(1, 2)
            out = out.unflatten(2, (stage.height, stage.width)).contiguous()
        if patch_merging is not None:
            after = patch_merging.difference(joined, stage.out, stage.height, stage.width)
        return out, after


def _interleave(msa: Sequence, mlp: Sequence) -> list:
    """Return the items of both in the order of the blocks; ``msa`` may be empty."""
    return [item for pair in zip(msa, mlp, strict=True) for item in pair] if len(msa) else [*mlp]


class Highway(nn.Module):
    """Highway over the stages of a trunk.

    Stage s has the taps a of its attentions (``msa``, none with ``taps="block"``) and the taps m of
    its MLPs (``mlp``)::

        h_s        = h_s^in + Σ_l [A^msa_{s,l}(a_{s,l}) + A^mlp_{s,l}(m_{s,l})],   h_0^in = 0
        out_s      = LN_s(x_s + h_s)
        h_{s+1}^in = PM_s(x_s + h_s) − PM_s(x_s)      downsample="offset"
                   = PM_s(h_s)                        downsample="direct", as in the paper

    PM_s is the trunk's own frozen patch merging; the highway holds no copy of it.

    This is ``form="parallel"``, the paper's. In ``form="chain"`` each adapter reads the sum of its
    tap z and the highway before it, as an adapter inside a trunk would::

        h ← h + A_{s,l}(z_{s,l} + h)   for the taps of a stage in order, from h_s^in to h_s

    With ``shared``, the adapters A_{s,l} of a stage are one adapter A_s, and the state dict holds
    it once. A side network computes h_s from h_s^in and all taps at once. With
    ``placement="inside"`` the adapters stand inside the trunk, to which :attr:`changes` goes, and
    h_s is zero.

    Args:
        dims: channels C_s of the trunk's stages.
        depths: blocks L_s of the trunk's stages.
        config: name of a recipe, mapping for :func:`e3va.highway_config`, or
            :class:`e3va.HighwayConfig`.
        make_adapter: function ``dim -> module`` for adapters from outside the registry; the module
            maps (tap [B, T, C], H, W) to [B, T, C]. None for the adapter kind of ``config``.
        out_stages: the stages that are pyramid levels, ascending.
        keep: form in which the fast forms keep taps for the backward pass, one of
            :data:`e3va.ops.saved_activation.FORMS`; None for plain modules and autograd, which
            also run adapters without a fast form.
        mlp_ratio: quotient of the widths of the trunk's MLPs and C_s, for adapters inside it.
        blocks: the trunk's blocks of each stage, for adapters that modulate a frozen matrix of
            theirs; None if there are none.

    Attributes:
        config: the complete config; its ``adapter`` is ``"(outside)"`` with ``make_adapter``.
        taps: the taps that the highway consumes; None without adapters.

    Raises:
        UserError: a wrong setting, an unknown ``keep``, a stage that the trunk lacks, or an adapter
            kind that needs ``blocks`` without them.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        config: str | Mapping | HighwayConfig = DEFAULT_RECIPE,
        *,
        make_adapter: Callable[[int], nn.Module] | None = None,
        out_stages: Sequence[int] = (0, 1, 2, 3),
        keep: str | None = "half",
        mlp_ratio: float = 4.0,
        blocks: Sequence[Sequence[nn.Module]] | None = None,
    ):
        super().__init__()
        if keep is not None:
            check_choice("keep", keep, SAVED_FORMS)
        out_stages = tuple(out_stages)
        if not out_stages or any(s not in range(len(dims)) for s in out_stages):
            raise UserError(f"out_stages {out_stages}: expected some of {tuple(range(len(dims)))}")
        config = as_highway_config(config)
        if make_adapter is None:
            make_adapter = config.adapter_factory(dims[0])
        else:
            config = replace(config, adapter=OUTSIDE, options={})
        self.config = config.complete(dims[0])
        self.taps = config.taps if make_adapter and not config.inside else None
        if blocks is None:
            blocks = [[None] * depth for depth in depths]
            if "frozen" in config.given:
                kind = config.adapter
                raise UserError(f"adapter {kind!r} without blocks: expected those of the trunk")
        # Stages after the last pyramid level would train nothing, so they are not built.
        self.stages = nn.ModuleList(
            HighwayStage(dims[s], blocks[s], config, make_adapter, s in out_stages, keep, mlp_ratio)
            for s in range(max(out_stages) + 1)
        )

    @property
    def changes(self) -> list[list[Callable]] | None:
        """The changes of adapters inside the trunk, see :meth:`e3va.SwinTrunk.stages`, or None."""
        if not self.config.inside:
            return None
        return [changes_of(stage.inside, stage.points) for stage in self.stages]

    def advance(
        self, stage: StageOutput, h_in: Tensor | None, patch_merging: PatchMerging | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Consume one stage, so that several highways can share one pass of a trunk.

        Args:
            stage: output of the trunk's stage s.
            h_in: ``h_s^in`` [B, T_s, C_s]; None for zero.
            patch_merging: PM_s; None after the last stage.

        Returns:
            ``out_s`` [B, C_s, H_s, W_s] (None if stage s is no pyramid level) and ``h_{s+1}^in``
            [B, T_{s+1}, C_{s+1}] (None for zero).
        """
        own = self.stages[stage.index]
        h = own(stage, h_in)
        continues = h is not None and stage.index + 1 < len(self.stages)
        merging = patch_merging if continues else None
        if self.config.downsample == "offset":
            return own.join(stage, h, merging)
        out, _ = own.join(stage, h, None)
        return out, merging and merging(h, stage.height, stage.width)

    def forward(
        self, stages: Iterable[StageOutput], patch_mergings: Sequence[PatchMerging | None]
    ) -> list[Tensor]:
        """Consume the stages and patch mergings of a :class:`e3va.swin.trunk.SwinTrunk`.

        Returns:
            ``out_s`` [B, C_s, H_s, W_s] for each s of ``out_stages``, in ascending order.
        """
        outputs, h = [], None
        for stage in stages:
            out, h = self.advance(stage, h, patch_mergings[stage.index])
            if out is not None:
                outputs.append(out)
            del stage  # frees its taps before the trunk computes the next stage
        return outputs


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
