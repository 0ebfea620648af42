"""SMoA: products of low rank that modulate blocks of a frozen matrix."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...utils.errors import UserError
from ..frozen_matrix import FrozenMatrix
from ..option_checks import check_rank
from ..registry import register_adapter_kind


class SMoAAdapter(nn.Module):
    """Spectrum Modulation Adapter, ``A(z) = α/r · ΔM · z`` (arXiv 2605.21147).

    The rows and the columns of a frozen matrix M are ordered by where their energy lies in its
    spectrum: row i by Σ_j j · (U_ij σ_j)² / Σ_j (U_ij σ_j)², column i likewise with V, for
    ``M = U diag(σ) Vᵀ`` with descending σ. Both orders are cut into K parts, and in the k-th
    diagonal block M_k of the ordered matrix::

        ΔM_k = (B_k · A_k) ⊙ M_k,   the rank r divided among the blocks

    ΔM is zero elsewhere. A_k starts with Kaiming's uniform distribution for a = √5 and B_k at zero,
    so a new adapter adds nothing. Orders, starts and defaults are those of the authors' code
    (misonsky/SMoA).

    Inside the trunk, M is the matrix beside which the adapter stands, as published: the projection
    to queries, keys and values, or the first layer of the MLP. A tap has no matrix. On the highway
    M is the output projection of the attention in the tap's block, the one that maps C channels to
    C. The orders are computed in the first forward pass and are part of the state dict, because
    they may differ from machine to machine where energies are nearly equal.

    Args:
        dim: channels C of the input.
        rank: rank r, at least K and at most the smaller width.
        blocks: number K of blocks.
        alpha: factor α; 0 for r.
        outputs: channels of the result; 0 for C.
        frozen: the frozen matrix M.
    """

    def __init__(
        self,
        dim: int,
        rank: int = 8,
        blocks: int = 2,
        alpha: float = 0.0,
        outputs: int = 0,
        frozen: FrozenMatrix | None = None,
    ):
        super().__init__()
        outputs = outputs or dim
        check_rank(rank, min(dim, outputs))
        if not 1 <= blocks <= rank:
            raise UserError(
                f"adapter blocks {blocks} with rank {rank}: expected a number from 1 to the rank"
            )
        self.scale, self.frozen = (alpha or rank) / rank, frozen
        ranks, widths, heights = (_parts(total, blocks) for total in (rank, dim, outputs))
        self.lora_A = nn.ParameterList(
            torch.empty(r, w) for r, w in zip(ranks, widths, strict=True)
        )
        self.lora_B = nn.ParameterList(
            torch.zeros(h, r) for h, r in zip(heights, ranks, strict=True)
        )
        for matrix in self.lora_A:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
        # -1: not computed yet
        self.register_buffer("rows", torch.full((outputs,), -1))
        self.register_buffer("columns", torch.full((dim,), -1))
        self._ordered = False

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, outputs]; ``height`` and ``width`` are not used."""
        matrix = self.frozen.weight
        if not self._ordered:
            self._order(matrix)
        parts = zip(
            self.lora_A,
            self.lora_B,
            self.rows.tensor_split(len(self.lora_A)),
            self.columns.tensor_split(len(self.lora_A)),
            strict=True,
        )
        out = torch.cat(
            [
                z[..., columns] @ ((b @ a) * matrix[rows][:, columns]).t().to(z.dtype)
                for a, b, rows, columns in parts
            ],
            dim=-1,
        )
        return self.scale * out[..., self.rows.argsort()]

    @torch.no_grad()
    def _order(self, matrix: Tensor) -> None:
        if self.rows[0] < 0:
            left, energies, right = torch.linalg.svd(matrix.float(), full_matrices=False)
            self.rows.copy_(_by_spectrum(left, energies))
            self.columns.copy_(_by_spectrum(right.t(), energies))
        self._ordered = True

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._ordered = False


def _parts(total: int, count: int) -> list[int]:
    """Return the sizes of nearly equal parts, the larger ones first."""
    return [total // count + (part < total % count) for part in range(count)]


def _by_spectrum(vectors: Tensor, values: Tensor) -> Tensor:
    """Order coordinates by the mean index of the singular vectors, weighted with their energy."""
    energy = (vectors * values).square()
    index = torch.arange(len(values), device=values.device, dtype=values.dtype)
    total = energy.sum(dim=1).clamp(min=torch.finfo(energy.dtype).eps)
    return ((energy * index).sum(dim=1) / total).argsort()


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    down = [t for name, t in tensors.items() if name.startswith("lora_A.")]
    return {"rank": sum(len(t) for t in down), "blocks": len(down)}


register_adapter_kind(
    "smoa",
    SMoAAdapter,
    source="arXiv 2605.21147",
    read_options=_read_options,
    inside={"qkv": "normed", "fc1": "normed"},
)
