"""The registry of fast forms: stages of the highway with a hand-written backward pass.

They compute on the tokens of a batch as rows [T, C], T = B · H · W, in chunks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..swin.trunk import StageOutput

# Size of one chunk of float32 rows: it fits a CPU's cache, and keeps a GPU busy.
CHUNK_BYTES = {"cpu": 4 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


@dataclass(frozen=True)
class TokenMap:
    """The shape of a batch of token maps, and the types of the computation.

    Attributes:
        batch, height, width: B, H and W.
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

    @classmethod
    def of(cls, stage: StageOutput, parameter: Tensor, keep: str) -> "TokenMap":
        """Describe a stage's maps; ``wide`` is at least the type of the highway's parameter."""
        device = stage.out.device.type
        wide = torch.promote_types(parameter.dtype, torch.float32)
        mixed = torch.is_autocast_enabled(device)
        narrow = torch.get_autocast_dtype(device) if mixed else wide
        form = keep if torch.is_grad_enabled() else None
        return cls(stage.out.shape[0], stage.height, stage.width, wide, narrow, form)

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


# (adapters, taps [B, T, C], maps, h or None) -> h, as HighwayStage.forward computes it.
FastForm = Callable[[Sequence[nn.Module], Sequence[Tensor], TokenMap, Tensor | None], Tensor]
_FAST_FORMS: dict[tuple[str, type[nn.Module]], FastForm] = {}


def register_fast_form(form: str, module: type[nn.Module], run: FastForm) -> None:
    """Register the fast form of stages with adapters of one class, not of its subclasses."""
    _FAST_FORMS[form, module] = run


def find_fast_form(form: str, adapters: Sequence[nn.Module]) -> FastForm | None:
    """Return the fast form for a stage's adapters; None if there is none."""
    classes = {type(adapter) for adapter in adapters}
    return _FAST_FORMS.get((form, classes.pop())) if len(classes) == 1 else None
