"""Maps of tokens as rows [T, C], in chunks: the form in which the fast forms work on them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..swin.trunk import StageOutput

# Size of one chunk of float32 rows: it fits a CPU's cache, and keeps a GPU busy.
CHUNK_BYTES = {"cpu": 4 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


@dataclass(frozen=True)
class TokenMap:
    """The shape of a batch of token maps, and the types of the computation.

    Attributes:
        batch, height, width: B, H and W; the rows are T = B · H · W tokens.
        wide: type of sums and norms, at least float32.
        narrow: type of matrix products: the type of autocast if it is on, else ``wide``.
        keep: form in which activations are kept for the backward pass, one of
            :data:`e3va.ops.saved_activation.FORMS`; None without gradients.
    """

    batch: int
    height: int
    width: int
    wide: torch.dtype
    narrow: torch.dtype
    keep: str | None

    def chunks(self, x: Tensor) -> Iterator[slice]:
        """Yield slices of rows of [T, C]; each is one chunk."""
        limit = CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ELSEWHERE)
        count = max(1, limit // (4 * x.shape[1]))
        for start in range(0, len(x), count):
            yield slice(start, min(start + count, len(x)))

    def as_map(self, rows: Tensor) -> Tensor:
        """Return [T, r] as [B, r, H, W], a view with channels last in memory."""
        return rows.view(self.batch, self.height, self.width, -1).permute(0, 3, 1, 2)

    def as_rows(self, x: Tensor) -> Tensor:
        """Return [B, r, H, W] as [T, r]."""
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def token_map(stage: StageOutput, parameter: Tensor, keep: str) -> TokenMap:
    """Return the token map of a stage.

    Args:
        stage: output of the trunk's stage.
        parameter: any parameter of the highway; its type sets the wide type.
        keep: form in which activations are kept, see :class:`TokenMap`.
    """
    device = stage.out.device.type
    wide = torch.promote_types(parameter.dtype, torch.float32)
    mixed = torch.is_autocast_enabled(device)
    narrow = torch.get_autocast_dtype(device) if mixed else wide
    form = keep if torch.is_grad_enabled() else None
    return TokenMap(stage.out.shape[0], stage.height, stage.width, wide, narrow, form)
