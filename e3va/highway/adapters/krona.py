"""KronA: a linear map whose matrix is a Kronecker product."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..option_checks import check_divisor
from ..registry import register_adapter_kind


class KronAAdapter(nn.Module):
    """KronA, ``A(z) = s · z · (A ⊗ B)``, or with ``residual`` ``s · z · (A ⊗ B) + s_res · z``.

    Kronecker adapters (arXiv 2212.10650): z is a row, A has the shape [a, a'] and B the shape
    [C/a, C/a']. The product is never built: with z as a matrix Z [a, C/a], it is ``Aᵀ · Z · B``. A
    starts with Kaiming's uniform distribution for a = √5 and B at zero, as in LoRA; s_res is
    trained and starts at zero. So a new adapter adds nothing. These starts and the nearly square
    default shapes are our choice.

    Args:
        dim: channels C of the tap.
        rows: rows a of A, a divisor of C; 0 for the largest one that is at most √C.
        columns: columns a' of A, a divisor of C; 0 for the same number.
        scale: factor s.
        residual: whether there is the term with s_res.
    """

    def __init__(
        self,
        dim: int,
        rows: int = 0,
        columns: int = 0,
        scale: float = 1.0,
        residual: bool = False,
    ):
        super().__init__()
        rows, columns = rows or _middle_divisor(dim), columns or _middle_divisor(dim)
        check_divisor("rows", rows, dim)
        check_divisor("columns", columns, dim)
        self.scale = scale
        self.a = nn.Parameter(torch.empty(rows, columns))
        self.b = nn.Parameter(torch.zeros(dim // rows, dim // columns))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.residual_scale = nn.Parameter(torch.zeros(1)) if residual else None

    def forward(self, z: Tensor, height: int, width: int) -> Tensor:
        """Map a tap [B, T, C] to [B, T, C]; ``height`` and ``width`` are not used."""
        matrix = z.unflatten(-1, (len(self.a), len(self.b)))
        # Aᵀ · (Z · B) is computed as the transpose of (Z · B)ᵀ · A: no copy of A for each token.
        product = ((matrix @ self.b).transpose(-1, -2) @ self.a).transpose(-1, -2)
        out = self.scale * product.flatten(-2)
        return out if self.residual_scale is None else out + self.residual_scale * z


def _middle_divisor(dim: int) -> int:
    """Return the largest divisor that is at most the root."""
    return max(a for a in range(1, math.isqrt(dim) + 1) if dim % a == 0)


def _read_options(tensors: Mapping[str, Tensor]) -> dict[str, int | bool]:
    (rows, columns), outer = tensors["a"].shape, len(tensors["b"])
    if rows == columns == _middle_divisor(rows * outer):
        rows = columns = 0  # the factors differ from stage to stage
    return {"rows": rows, "columns": columns, "residual": "residual_scale" in tensors}


register_adapter_kind(
    "krona",
    KronAAdapter,
    source="arXiv 2212.10650",
    read_options=_read_options,
    inside={"projected": "normed"},
)
