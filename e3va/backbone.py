"""The backbone: a trunk, a highway beside it, and a feature pyramid out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from .highway.adapters.conv import MixingAdapter
from .highway.adapters.dual_low_rank import Adapter
from .highway.highway import Highway
from .swin.precision import storage_dtype
from .swin.presets import SwinPreset, get_preset, same_geometry
from .swin.storage import store_as, store_in_8_bits
from .swin.trunk import TAPS, SwinTrunk
from .utils.errors import UserError
from .weights.origin import origin_of

LEVELS = ("p0", "p1", "p2", "p3")
# How each memory mode keeps the highway's taps, see e3va.ops.saved_activation; None: as autograd does.
MEMORY = {"standard": "half", "lean": "int8", "plain": None}


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        form: of the highway, see :class:`e3va.highway.highway.Highway`.
        taps, downsample: what a highway's settings are unless others are given.
        trunk: whether the trunk trains.
    """

    form: str = "parallel"
    taps: str | None = None
    downsample: str = "offset"
    trunk: bool = False


METHODS = {
    "e3va": Method(form="chain", taps="block"),
    "paper": Method(taps="sublayer", downsample="direct"),
    "frozen": Method(),
    "full": Method(trunk=True),
}


@dataclass(frozen=True)
class BackboneSettings:
    """All that the shapes and the arithmetic of a backbone depend on; see :class:`E3VABackbone`."""

    preset: SwinPreset
    method: str
    rank: int
    reduction: int
    taps: str | None
    downsample: str
    out_features: tuple[str, ...]

    @property
    def of_all_levels(self) -> dict[str, object]:
        """All but ``out_features``, by name."""
        return {name: value for name, value in vars(self).items() if name != "out_features"}


@dataclass(frozen=True)
class HighwaySettings:
    """What a highway is built with; nothing of a highway without adapters depends on it."""

    rank: int
    taps: str | None
    downsample: str


def complete(
    method: str,
    preset: SwinPreset,
    rank: int | None = None,
    taps: str | None = None,
    downsample: str | None = None,
) -> HighwaySettings:
    """Fill in a method's own settings for those that are None.

    The rank of ``"e3va"`` is three eighths of the first stage's channels (36 for Swin-T and S, 48
    for B, 72 for L), that of ``"paper"`` the paper's 16.

    Raises:
        UserError: an unknown method.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r}: expected one of {(*METHODS,)}")
    own = METHODS[method]
    if rank is None:
        rank = 16 if method == "paper" else max(1, preset.embed_dim * 3 // 8)
    taps = own.taps and (taps or own.taps)
    return HighwaySettings(rank, taps, downsample or own.downsample)


class E3VABackbone(nn.Module):
    """A Swin backbone tuned along its highway.

    Args:
        preset: a name of :data:`e3va.swin.presets.PRESETS` (``"swin_t"``, ``"swin_l_384"``, …) or a
            geometry.
        method: ``"e3va"`` and ``"paper"`` train adapters and pyramid norms: a chain with one
            adapter for each block, which mixes neighbours (:class:`e3va.MixingAdapter`), or the
            paper's two side by side (:class:`e3va.Adapter`); ``"frozen"`` trains the pyramid norms
            alone; ``"full"`` everything, the trunk included, without adapters.
        rank: r of the adapters; by default that of :func:`complete`.
        reduction: q of the paper's adapters, whose bottleneck is C/q.
        taps: what adapters read, see :meth:`e3va.swin.trunk.SwinTrunk.stages`; by default ``"block"``
            for ``"e3va"``, ``"sublayer"`` for ``"paper"``.
        downsample: how the highway passes from stage to stage, see :class:`e3va.highway.highway.Highway`;
            by default ``"offset"`` for ``"e3va"``, ``"direct"`` for ``"paper"``.
        memory: ``"standard"``: the taps are kept in half precision and a frozen trunk runs in its
            fast form (:mod:`e3va.swin.fast_trunk`, :mod:`e3va.highway.fast_chain`). ``"lean"``: the taps, and
            after :meth:`prepare` the trunk's weights, are kept in 8 bits; the hosts also compute
            neck and heads again in the backward pass instead of keeping what lies inside them.
            ``"plain"``: the reference, modules and autograd alone.
        trunk_precision: in which type a frozen trunk computes: ``"auto"`` is float32, and in mixed
            precision what the device is fast in; or ``"fp32"``, ``"bf16"``, ``"fp16"``. See
            :mod:`e3va.swin.precision`.
        out_features: the pyramid levels to give, some of p0..p3 (strides 4, 8, 16, 32).
        trunk: one of the same preset to share with other backbones, frozen; its own settings then
            stand for ``trunk_precision``. None to build one.

    Attributes:
        settings: all of these that weights depend on.

    Raises:
        UserError: a setting that is not one of those above, or a trunk that cannot be shared.

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
        rank: int | None = None,
        reduction: int = 4,
        taps: str | None = None,
        downsample: str | None = None,
        memory: str = "standard",
        trunk_precision: str = "auto",
        out_features: Sequence[str] = LEVELS,
        trunk: SwinTrunk | None = None,
    ):
        super().__init__()
        preset = get_preset(preset)
        own = complete(method, preset, rank, taps, downsample)
        if taps is not None and taps not in TAPS:
            raise UserError(f"taps {taps!r}: expected one of {TAPS}")
        if memory not in MEMORY:
            raise UserError(f"memory {memory!r}: expected one of {(*MEMORY,)}")
        if memory == "plain" and trunk_precision not in ("auto", "fp32"):
            raise UserError(
                f"trunk_precision {trunk_precision!r} with memory 'plain': a plain trunk computes "
                "as autocast has it; give trunk_precision 'auto', or another memory"
            )
        if not out_features or any(name not in LEVELS for name in out_features):
            raise UserError(f"out_features {list(out_features)}: expected some of {LEVELS}")
        self.method = method
        self.memory = memory
        self.trunk_precision = trunk_precision
        self.out_features = tuple(sorted(set(out_features), key=LEVELS.index))
        self.taps = own.taps
        self.settings = BackboneSettings(
            preset, method, own.rank, reduction, own.taps, own.downsample, self.out_features
        )
        if trunk is not None:
            _check_shared(trunk, preset, method)
        self.trunk = trunk or SwinTrunk(
            preset,
            frozen=not METHODS[method].trunk,
            fast=memory != "plain",
            precision=trunk_precision,
        )
        self.highway = Highway(
            preset.dims,
            preset.depths,
            out_stages=[LEVELS.index(name) for name in self.out_features],
            make_adapter=_adapter_maker(method, own.rank, reduction),
            taps=own.taps,
            form=METHODS[method].form,
            downsample=own.downsample,
            keep=MEMORY[memory],
        )

    def prepare(self, mixed: bool) -> None:
        """Bring a frozen trunk's weights into the form in which they are kept while it is used.

        In mixed precision that is a half-precision type, see :func:`e3va.swin.precision.storage_dtype`;
        with ``memory="lean"`` 8 bits for the blocks' matrices. It rounds the weights; without it
        everything works as well and takes more memory. Call it once the model is on its device,
        with its weights loaded. Nothing happens to a plain trunk, or to one that trains.

        Args:
            mixed: whether training runs in mixed precision.
        """
        if not self.trunk.frozen or self.memory == "plain":
            return
        origin = origin_of(self.trunk)  # before the weights are rounded
        if self.memory == "lean":
            store_in_8_bits(self.trunk)
        device = next(self.trunk.parameters()).device
        dtype = storage_dtype(self.trunk_precision, device, mixed)
        store_as(self.trunk, dtype)
        self.trunk.origin = origin.rounded(dtype, int8=self.memory == "lean")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] → {p_s: [B, C_s, ceil(H / 2^(s+2)), ceil(W / 2^(s+2))]}."""
        stages = self.trunk.stages(images, taps=self.taps, count=len(self.highway.stages))
        outputs = self.highway(stages, self.trunk.patch_mergings)
        return dict(zip(self.out_features, outputs, strict=True))


def find_backbone(model: nn.Module) -> tuple[str, E3VABackbone]:
    """The E³VA backbone inside a model, and its name there (``""`` for the model itself).

    Raises:
        UserError: there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, E3VABackbone):
            return name, module
    raise UserError(f"the model ({type(model).__name__}) has no E³VA backbone: expected one")


def trunk_prefix(model: nn.Module) -> str:
    """What the names of the trunk's tensors begin with in the model's state dict."""
    name, _ = find_backbone(model)
    return f"{name}.trunk." if name else "trunk."


def _check_shared(trunk: SwinTrunk, preset: SwinPreset, method: str) -> None:
    if METHODS[method].trunk or not trunk.frozen:
        raise UserError(f"method {method!r} with a shared trunk: expected a frozen one")
    if not same_geometry(trunk.preset, preset):
        raise UserError(f"the trunk to share is {trunk.preset}: expected {preset}")


def _adapter_maker(method: str, rank: int, reduction: int) -> Callable[[int], nn.Module] | None:
    if METHODS[method].taps is None:
        return None
    if method == "paper":
        return partial(Adapter, rank=rank, reduction=reduction)
    return partial(MixingAdapter, rank=rank)
