"""Maps of tokens as the highway's hand-written passes work on them: as rows, chunk by chunk."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..swin.trunk import StageOutput

# Of float32 rows at a time: what stays in a CPU's cache; on a GPU what keeps it busy.
CHUNK_BYTES = {"cpu": 4 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


@dataclass(frozen=True)
class TokenMap:
    """What the rows are: a batch of maps, and in which types they are worked on.

    Attributes:
        batch, height, width: B, H, W.
        wide: type of sums and norms, at least float32.
        narrow: type of matrix products: autocast's where it is on, else ``wide``.
        keep: one of :data:`e3va.ops.saved_activation.FORMS`; None where nothing is kept (inference).
    """

    batch: int
    height: int
    width: int
    wide: torch.dtype
    narrow: torch.dtype
    keep: str | None

    def chunks(self, x: Tensor) -> Iterator[slice]:
        """Rows of [T, C] to work on together."""
        limit = CHUNK_BYTES.get(x.device.type, _CHUNK_BYTES_ELSEWHERE)
        count = max(1, limit // (4 * x.shape[1]))
        for start in range(0, len(x), count):
            yield slice(start, min(start + count, len(x)))

    def as_map(self, rows: Tensor) -> Tensor:
        """[T, r] → [B, r, H, W], channels last in memory, nothing copied."""
        return rows.view(self.batch, self.height, self.width, -1).permute(0, 3, 1, 2)

    def as_rows(self, x: Tensor) -> Tensor:
        """[B, r, H, W] → [T, r]."""
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def token_map(stage: StageOutput, parameter: Tensor, keep: str) -> TokenMap:
    """The map of a stage, as the highway whose ``parameter`` is given works on it."""
    device = stage.out.device.type
    wide = torch.promote_types(parameter.dtype, torch.float32)
    mixed = torch.is_autocast_enabled(device)
    narrow = torch.get_autocast_dtype(device) if mixed else wide
    own = keep if torch.is_grad_enabled() else None
    return TokenMap(stage.out.shape[0], stage.height, stage.width, wide, narrow, own)
