"""Conv-Adapter: a grouped convolution in a bottleneck, and a pointwise one out of it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ..option_checks import check_divisor, check_kernel
from ..registry import register_adapter_kind


class ConvAdapter(nn.Module):
    """Conv-Adapter, ``A(z) = α ⊙ (PW(GELU(K * z)))`` (arXiv 2208.07463).

    K is a grouped convolution from C to C/γ channels in C/γ groups, PW a 1×1 convolution back to C;
    both have biases. α has one factor for each channel, which starts at 1. The kernel's side, the
    activation and the convolutions' start, PyTorch's own, are those of the authors' code for Swins
    (Hhhhhhao/Conv-Adapter). So a new adapter adds something, unless ``zero_start`` is set.

    Their code has an older design too, in which a 1×1 convolution narrows and K keeps the width::

        A(z) = α ⊙ GELU(PW(K * GELU(PW_1 * z)))

    There α is a constant and K has any number of groups; here α is trained and K is depthwise.

    Args:
        dim: channels C of the tap.
        reduction: quotient γ of C and the width of the bottleneck, a divisor of C.
        kernel: side of K in tokens, an odd number.
        pointwise_first: whether the adapter has the older design.
        zero_start: whether α starts at zero, so that a new adapter adds nothing.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 8,
        kernel: int = 7,
        pointwise_first: bool = False,
        zero_start: bool = False,
    ):
        super().__init__()
        check_divisor("reduction", reduction, dim)
        check_kernel(kernel)
        hidden = dim // reduction
        self.narrow = nn.Conv2d(dim, hidden, 1) if pointwise_first else None
        inputs = hidden if pointwise_first else dim
        self.conv = nn.Conv2d(inputs, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.pointwise = nn.Conv2d(hidden, dim, 1)
        self.alpha = nn.Parameter(torch.full((dim,), 0.0 if zero_start else 1.0))

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        x = to_map(z, height, width)
        if self.narrow is None:
            out = self.pointwise(F.gelu(self.conv(x)))
        else:
            out = F.gelu(self.pointwise(self.conv(F.gelu(self.narrow(x)))))
        return to_tokens(out) * self.alpha


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int | bool]:
    hidden, _, kernel, _ = tensors["conv.weight"].shape
    options = {"reduction": len(tensors["alpha"]) // hidden, "kernel": kernel}
    return {**options, "pointwise_first": "narrow.weight" in tensors}


register_adapter_kind(
    "conv_adapter",
    ConvAdapter,
    source="arXiv 2208.07463",
    read_options=_read_options,
    inside={"attended": "normed"},
)
