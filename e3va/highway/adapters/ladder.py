"""Ladder Side-Tuning: a narrow Swin beside the trunk."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...swin.modules import SwinBlock, init_linear
from ...swin.windows import shift_mask
from ...utils.errors import UserError
from ..option_checks import check_divisor
from ..registry import register_adapter_kind

_TEMPERATURE = 0.1  # T of the gates
_HEAD = 32  # channels of an attention head, as in Swins


class LadderSideNetwork(nn.Module):
    """Ladder Side-Tuning, a side network of narrow blocks (arXiv 2206.06522).

    Each block of the trunk has a rung: a Swin block of C/γ channels, which reads the side network
    before it and the block's tap, weighted by a gate with a trained α_l that starts at zero::

        y_1 = Block_1(D_1 · (z_1 + h^in) + d_1)
        y_l = Block_l(μ_l · y_{l-1} + (1 - μ_l) · (D_l · (z_l + h^in) + d_l))
        h   = h^in + U · LN(y_L) + b_u,   μ_l = sigmoid(α_l / T)

    Gates, temperature, the norm before U and γ are those of the authors' code
    (ylsung/Ladder-Side-Tuning), which has ladders for language models without stages. We decided
    what a ladder beside a Swin is: one for each stage, which enters the next one as every highway
    does, by way of the trunk's patch merging and as h^in; and U and b_u start at zero, so that a
    new ladder adds nothing. The authors start their blocks with pruned weights of the trunk, ours
    start as a Swin does.

    Args:
        dim: channels C of the taps.
        reduction: quotient γ of C and the width of the ladder, a divisor of C.
        window: side of the attention's windows in tokens; every second block shifts them.
        tap_count: number of taps of the stage.
    """

    def __init__(self, dim: int, reduction: int = 8, window: int = 7, tap_count: int = 1):
        super().__init__()
        check_divisor("reduction", reduction, dim)
        if window < 2:
            raise UserError(f"adapter window {window}: expected at least 2")
        width = dim // reduction
        if width < 2:  # a norm of one channel is zero
            raise UserError(
                f"adapter reduction {reduction}: expected at most {dim // 2}, half of the channels"
            )
        heads = width // _HEAD if width % _HEAD == 0 else 1
        self.window, self.shift = window, window // 2
        self.down = nn.ModuleList(nn.Linear(dim, width) for _ in range(tap_count))
        self.gates = nn.ParameterList(torch.zeros(1) for _ in range(tap_count - 1))
        self.blocks = nn.ModuleList(
            SwinBlock(width, heads, window, self.shift * (tap % 2), mlp_ratio=4.0)
            for tap in range(tap_count)
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, dim)
        self.apply(init_linear)
        nn.init.zeros_(self.up.weight)

    def forward(self, taps: list[Tensor], h: Tensor | None, height: int, width: int) -> Tensor:
        """Map taps [B, T, C] and h^in [B, T, C] (None for zero) to h [B, T, C]."""
        mask = shift_mask(height, width, self.window, self.shift, taps[0].device)
        y = None
        for index, (z, down, block) in enumerate(zip(taps, self.down, self.blocks, strict=True)):
            seen = down(z if h is None else z + h)
            if y is not None:
                gate = torch.sigmoid(self.gates[index - 1] / _TEMPERATURE)
                seen = gate * y + (1 - gate) * seen
            y = block(seen.unflatten(1, (height, width)), mask)["after_mlp"].flatten(1, 2)
        offset = self.up(self.norm(y))
        return offset if h is None else h + offset


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    width, dim = tensors["down.0.weight"].shape
    positions = len(tensors["blocks.0.attn.relative_position_bias_table"])
    return {"reduction": dim // width, "window": (round(positions**0.5) + 1) // 2}


register_adapter_kind(
    "ladder",
    LadderSideNetwork,
    source="after arXiv 2206.06522",
    read_options=_read_options,
    inside={},
)
