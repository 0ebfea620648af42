"""CoLin: a bottleneck whose low-rank matrices share their singular values."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.maps import to_map, to_tokens
from ..option_checks import check_kernel, check_rank
from ..registry import ON_STREAM, register_adapter_kind


class CoLinAdapter(nn.Module):
    """CoLin, the complex linear projection adapter (arXiv 2602.10513).

    It computes, with σ = Σ_i σ_i over the branches and g = sigmoid(γ)::

        y = Q_dᵀ · (σ ⊙ (P_dᵀ · z)) + b_d
        A(z) = Q_uᵀ · (σ ⊙ (P_uᵀ · GELU(g ⊙ (K * y) + (1 − g) ⊙ y))) + b_u

    K is a depthwise convolution with bias. Both projections share the σ_i. As in the authors' code
    (DongshuoYin/CoLin), P and Q start as the means of the singular vectors of random matrices, one
    for each branch, the σ_i as their singular values, γ at zero, and the biases between
    ±1/√(inputs). So a new adapter adds something, unless ``zero_start`` is set.

    The columns of P and the rows of Q are drawn towards orthonormality: to their gradients comes
    that of ``weight · branches · (‖PᵀP − I‖² + ‖QQᵀ − I‖²)``, as in the authors' code without the
    factor of a scaled loss.

    Args:
        dim: channels C of the tap.
        rank: number of singular values, at most C and at most ``hidden``.
        hidden: width of the bottleneck.
        branches: number of random matrices and of the σ_i.
        kernel: side of K in tokens, an odd number.
        orthogonality: weight of the orthonormality; 0 for none.
        zero_start: whether Q_u and b_u start at zero, so that a new adapter adds nothing.
    """

    def __init__(
        self,
        dim: int,
        rank: int = 28,
        hidden: int = 100,
        branches: int = 4,
        kernel: int = 3,
        orthogonality: float = 0.5,
        zero_start: bool = False,
    ):
        super().__init__()
        check_rank(rank, min(dim, hidden))
        check_kernel(kernel)
        self.weight_of_penalty = orthogonality * branches
        p_down, _, q_down = _mean_vectors(dim, hidden, rank, branches)
        p_up, sigma, q_up = _mean_vectors(hidden, dim, rank, branches)
        self.sigma = nn.Parameter(sigma)
        self.p_down, self.q_down = nn.Parameter(p_down), nn.Parameter(q_down)
        self.p_up, self.q_up = nn.Parameter(p_up), nn.Parameter(q_up)
        self.down_bias = nn.Parameter(torch.empty(hidden).uniform_(-1, 1) / math.sqrt(dim))
        self.up_bias = nn.Parameter(torch.empty(dim).uniform_(-1, 1) / math.sqrt(hidden))
        self.conv = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden)
        self.gamma = nn.Parameter(torch.zeros(hidden, 1, 1))
        if zero_start:
            nn.init.zeros_(self.q_up)
            nn.init.zeros_(self.up_bias)

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C], T = height · width in row order, to [B, T, C]."""
        y = to_map(self._project(z, self.p_down, self.q_down, self.down_bias), height, width)
        share = self.gamma.sigmoid()
        inner = F.gelu(to_tokens(share * self.conv(y) + (1 - share) * y))
        return self._project(inner, self.p_up, self.q_up, self.up_bias)

    def _project(self, x: Tensor, p: Tensor, q: Tensor, bias: Tensor) -> Tensor:
        if self.weight_of_penalty:
            p = _TowardsOrthonormal.apply(p, self.weight_of_penalty)
            q = _TowardsOrthonormal.apply(q.t(), self.weight_of_penalty).t()
        return F.linear(x, (p * self.sigma.sum(0) @ q).t(), bias)


def _mean_vectors(inputs: int, outputs: int, rank: int, branches: int) -> tuple[Tensor, ...]:
    """Return P [inputs, rank], σ [branches, rank] and Q [rank, outputs] of random matrices."""
    bound = 1 / math.sqrt(inputs)
    random = torch.empty(branches, inputs, outputs).uniform_(-bound, bound)
    left, values, right = torch.linalg.svd(random, full_matrices=False)
    return left[..., :rank].mean(0), values[:, :rank].clone(), right[:, :rank].mean(0)


class _TowardsOrthonormal(torch.autograd.Function):
    """The identity; adds ``weight · ∇‖MᵀM − I‖²`` to the gradient of M."""

    @staticmethod
    def forward(ctx, matrix: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.weight = weight
        return matrix.view_as(matrix)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        with torch.autocast(matrix.device.type, enabled=False):
            excess = matrix.t() @ matrix - torch.eye(matrix.shape[1]).to(matrix)
            return gradient + 4 * ctx.weight * (matrix @ excess), None


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    branches, rank = tensors["sigma"].shape
    hidden, _, kernel, _ = tensors["conv.weight"].shape
    return {"rank": rank, "hidden": hidden, "branches": branches, "kernel": kernel}


register_adapter_kind(
    "colin", CoLinAdapter, source="arXiv 2602.10513", read_options=_read_options, inside=ON_STREAM
)
