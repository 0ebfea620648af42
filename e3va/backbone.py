"""The backbone: a trunk, a highway beside it, and a feature pyramid as output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from .highway.config import DEFAULT_RECIPE, HighwayConfig, as_highway_config, highway_config
from .highway.highway import Highway
from .swin.precision import storage_dtype
from .swin.presets import SwinPreset, get_preset, preset_name, same_geometry
from .swin.storage import store_as, store_in_8_bits
from .swin.trunk import SwinTrunk
from .utils.errors import UserError, check_choice
from .weights.origin import origin_of

LEVELS = ("p0", "p1", "p2", "p3")
# Form in which each memory mode keeps the highway's taps, the ``keep`` of e3va.Highway.
MEMORY = {"standard": "half", "lean": "int8", "plain": None}


@dataclass(frozen=True)
class BackboneConfig:
    """All that the shapes and the arithmetic of a backbone depend on.

    Attributes:
        preset: the geometry of the trunk.
        highway: the complete config of the highway.
        out_features: the pyramid levels, some of p0..p3.
    """

    preset: SwinPreset
    highway: HighwayConfig
    out_features: tuple[str, ...] = LEVELS

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the preset's name (or ``""``), and its sizes."""
        sizes = asdict(self.preset).items()
        return {
            "preset": preset_name(self.preset) or "",
            "geometry": {k: list(v) if isinstance(v, tuple) else v for k, v in sizes},
            "highway": self.highway.to_dict(),
            "out_features": list(self.out_features),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "BackboneConfig":
        """Read the result of :meth:`to_dict` from an untrusted file, and check types and sizes."""
        sizes = data["geometry"].items()
        preset = SwinPreset(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes})
        preset.check_bounds()
        if not data["out_features"] or not set(data["out_features"]) <= {*LEVELS}:
            raise ValueError(f"out_features {data['out_features']!r}")
        highway = highway_config(**data["highway"]).complete(preset.embed_dim)
        highway.adapter_factory(preset.embed_dim)  # refuses adapters from outside the registry
        return cls(preset, highway, tuple(data["out_features"]))


class E3VABackbone(nn.Module):
    """A Swin backbone that is tuned along its highway.

    Args:
        preset: name in :data:`e3va.swin.presets.PRESETS` (``"swin_t"``, ``"swin_l_384"`` etc.), or
            a geometry.
        highway: name of a recipe. ``"e3va_chain"`` (the default), ``"e3va_wide"`` (larger adapters)
            and ``"e3va"`` (the paper's form) train adapters and pyramid norms, ``"frozen"`` only
            the pyramid norms, ``"full"`` the trunk and the pyramid norms. Or a mapping of a recipe
            and changes to it, such as ``{"recipe": "e3va_chain", "rank": 24}``, see
            :func:`e3va.highway_config`; a :class:`e3va.HighwayConfig`; or a module with the
            attributes and the call of :class:`e3va.Highway`.
        make_adapter: function ``dim -> module`` for adapters from outside the registry, see
            :class:`e3va.Highway`.
        memory: memory mode. ``"standard"`` keeps taps in half precision and runs a frozen trunk in
            its fast form (:mod:`e3va.swin.fast_trunk`, :mod:`e3va.highway.fast_chain`). ``"lean"``
            keeps taps in 8 bits, and after :meth:`prepare` the trunk's weights too; the frameworks
            also recompute neck and heads in the backward pass. ``"plain"`` is the reference: plain
            modules and autograd.
        trunk_precision: type in which a frozen trunk computes: ``"auto"`` (float32, and in mixed
            precision the fastest type of the device), ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        out_features: pyramid levels of the output, some of p0..p3 (strides 4, 8, 16, 32).
        trunk: frozen trunk of the same preset to share with other backbones; its own precision then
            applies. None to build one.

    Attributes:
        config: the :class:`BackboneConfig`.

    Raises:
        UserError: a setting has another value than those above, or the trunk cannot be shared.

    Example::

        backbone = E3VABackbone("swin_t")
        features = backbone(torch.rand(1, 3, 224, 224))
        features["p0"].shape  # [1, 96, 56, 56]
    """

    def __init__(
        self,
        preset: str | SwinPreset = "swin_t",
        highway: str | Mapping[str, Any] | HighwayConfig | nn.Module = DEFAULT_RECIPE,
        *,
        make_adapter: Callable[[int], nn.Module] | None = None,
        memory: str = "standard",
        trunk_precision: str = "auto",
        out_features: Sequence[str] = LEVELS,
        trunk: SwinTrunk | None = None,
    ):
        super().__init__()
        preset = get_preset(preset)
        check_choice("memory", memory, MEMORY)
        if memory == "plain" and trunk_precision not in ("auto", "fp32"):
            raise UserError(
                f"trunk_precision {trunk_precision!r} with memory 'plain': autocast sets the "
                "precision of a plain trunk; set trunk_precision to 'auto' or choose another memory"
            )
        if not out_features or any(name not in LEVELS for name in out_features):
            raise UserError(f"out_features {list(out_features)}: expected some of {LEVELS}")
        if make_adapter is not None and isinstance(highway, nn.Module):
            raise UserError("make_adapter and a highway module: expected one of the two")
        self.memory, self.trunk_precision = memory, trunk_precision
        self.out_features = tuple(sorted(set(out_features), key=LEVELS.index))
        config = highway.config if isinstance(highway, nn.Module) else as_highway_config(highway)
        if trunk is not None and (config.train_trunk or not trunk.frozen):
            recipe = config.recipe
            raise UserError(f"a shared trunk with recipe {recipe!r}: expected a frozen trunk")
        if trunk is not None and not same_geometry(trunk.preset, preset):
            raise UserError(f"the trunk to share is {trunk.preset}: expected {preset}")
        # The trunk comes before the highway, so that a seed gives the same trunk for every recipe.
        fast, frozen = memory != "plain", not config.train_trunk
        self.trunk = trunk or SwinTrunk(preset, frozen=frozen, fast=fast, precision=trunk_precision)
        if not isinstance(highway, nn.Module):
            highway = Highway(
                preset.dims,
                preset.depths,
                config,
                make_adapter=make_adapter,
                out_stages=[LEVELS.index(name) for name in self.out_features],
                keep=MEMORY[memory],
                mlp_ratio=preset.mlp_ratio,
                blocks=[layer.blocks for layer in self.trunk.layers],
            )
        self.highway = highway
        self.config = BackboneConfig(preset, highway.config, self.out_features)

    def prepare(self, mixed: bool) -> None:
        """Convert a frozen trunk's weights to the form in which training stores them.

        In mixed precision this is a half-precision type; with ``memory="lean"`` the matrices of the
        blocks are rounded to 8 bits. Call this method when the weights are loaded and the model is
        on its device. It does not change a plain trunk or a trunk that trains.

        Args:
            mixed: whether training runs in mixed precision.
        """
        if not self.trunk.frozen or self.memory == "plain" or self.config.highway.inside:
            return
        origin = origin_of(self.trunk)  # before the weights are rounded
        if self.memory == "lean":
            store_in_8_bits(self.trunk)
        device = next(self.trunk.parameters()).device
        dtype = storage_dtype(self.trunk_precision, device, mixed)
        store_as(self.trunk, dtype)
        self.trunk.origin = origin.rounded(dtype, int8=self.memory == "lean")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to {p_s: [B, C_s, ceil(H / 2^(s+2)), ceil(W / 2^(s+2))]}."""
        highway = self.highway
        stages = self.trunk.stages(images, highway.taps, len(highway.stages), highway.changes)
        outputs = highway(stages, self.trunk.patch_mergings)
        return dict(zip(self.out_features, outputs, strict=True))


def find_backbone(model: nn.Module) -> tuple[str, E3VABackbone]:
    """Return the name and the module of a model's E³VA backbone (``""`` for the model itself).

    Raises:
        UserError: the model has no E³VA backbone.
    """
    for name, module in model.named_modules():
        if isinstance(module, E3VABackbone):
            return name, module
    raise UserError(
        f"the model ({type(model).__name__}) has no E³VA backbone: build it with "
        "e3va.E3VABackbone, or in Detectron2 with model.backbone.bottom_up=L(E3VASwin)(...)"
    )


def trunk_prefix(model: nn.Module) -> str:
    """Return the prefix of the trunk's names in the model's state dict."""
    name, _ = find_backbone(model)
    return f"{name}.trunk." if name else "trunk."
