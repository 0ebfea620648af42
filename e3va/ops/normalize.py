"""LayerNorm without parameters."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-5  # the default of nn.LayerNorm


class _Normalize(torch.autograd.Function):
    """LayerNorm that keeps its result, which the projection behind it keeps too.

    PyTorch's LayerNorm keeps its argument: one more map for each adapter.
    """

    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:
        normed, _, inverse_std = torch.native_layer_norm(z, z.shape[-1:], None, None, EPS)
        ctx.save_for_backward(normed, inverse_std)
        return normed, 1 / inverse_std

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, std_gradient: Tensor) -> Tensor:
        normed, inverse_std = ctx.saved_tensors
        # The gradient of std is n / C.
        through_std = normed * (std_gradient / normed.shape[-1])
        return norm_backward(gradient, normed, inverse_std) + through_std


def norm_backward(gradient: Tensor, normed: Tensor, inverse_std: Tensor) -> Tensor:
    """Compute ``(g − mean(g) − n · mean(g · n)) / std`` from the gradient g of the result n."""
    means = gradient.mean(-1, keepdim=True), (gradient * normed).mean(-1, keepdim=True)
    return (gradient - means[0] - normed * means[1]) * inverse_std


def normalize(z: Tensor) -> tuple[Tensor, Tensor]:
    """Normalize the last dimension; under autocast in float32, as PyTorch's LayerNorm does.

    Returns:
        The normed tensor, and the standard deviations by which it was divided, [..., 1].
    """
    if torch.is_autocast_enabled(z.device.type):
        z = z.float()
    return _Normalize.apply(z)
