"""The backbone: a trunk, a highway beside it, and a feature pyramid out."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from .adapter import Adapter
from .errors import UserError
from .highway import Highway
from .presets import SwinPreset, get_preset
from .trunk import TAPS, SwinTrunk

METHODS = ("e3va", "frozen", "full")
LEVELS = ("p0", "p1", "p2", "p3")


class E3VABackbone(nn.Module):
    """A Swin backbone tuned along its highway.

    Args:
        preset: a name of :data:`e3va.presets.PRESETS` (``"swin_t"``, ``"swin_l_384"``, …) or a
            geometry.
        method: ``"e3va"`` trains adapters and pyramid norms; ``"frozen"`` the pyramid norms alone;
            ``"full"`` everything, the trunk included, without adapters.
        rank: r of the adapters.
        reduction: q of the adapters, whose bottleneck is C/q.
        taps: ``"residual"`` or ``"sublayer"``, see :meth:`e3va.trunk.SwinTrunk.stages`.
        downsample: ``"offset"`` or ``"direct"``, see :class:`e3va.highway.Highway`.
        out_features: the pyramid levels to give, some of p0..p3 (strides 4, 8, 16, 32).

    Raises:
        UserError: a setting that is not one of those above.

    Example::

        backbone = E3VABackbone("swin_t")
        features = backbone(torch.rand(1, 3, 224, 224))
        features["p0"].shape  # [1, 96, 56, 56]
    """

    def __init__(
        self,
        preset: str | SwinPreset = "swin_t",
        *,
        method: str = "e3va",
        rank: int = 16,
        reduction: int = 4,
        taps: str = "residual",
        downsample: str = "offset",
        out_features: Sequence[str] = LEVELS,
    ):
        super().__init__()
        if method not in METHODS:
            raise UserError(f"method {method!r}: expected one of {METHODS}")
        if taps not in TAPS:
            raise UserError(f"taps {taps!r}: expected one of {TAPS}")
        if not out_features or any(name not in LEVELS for name in out_features):
            raise UserError(f"out_features {list(out_features)}: expected some of {LEVELS}")
        self.method = method
        self.taps = taps if method == "e3va" else None
        self.out_features = tuple(sorted(set(out_features), key=LEVELS.index))
        preset = get_preset(preset)
        self.trunk = SwinTrunk(preset, frozen=method != "full")
        self.highway = Highway(
            preset.dims,
            preset.depths,
            out_stages=[LEVELS.index(name) for name in self.out_features],
            make_adapter=partial(Adapter, rank=rank, reduction=reduction)
            if method == "e3va"
            else None,
            downsample=downsample,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] → {p_s: [B, C_s, ceil(H / 2^(s+2)), ceil(W / 2^(s+2))]}."""
        stages = self.trunk.stages(images, taps=self.taps, count=len(self.highway.stages))
        outputs = self.highway(stages, self.trunk.patch_mergings)
        return dict(zip(self.out_features, outputs, strict=True))
