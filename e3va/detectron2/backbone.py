"""The E³VA backbones in Detectron2's form, and in its registry."""

import logging

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..backbone import LEVELS, E3VABackbone, find_backbone
from ..swin.modules import PATCH
from ..swin.presets import SwinPreset, get_preset, preset_name
from ..utils.errors import UserError
from .lean import LeanPyramid

logger = logging.getLogger(__name__)


class E3VASwin(E3VABackbone, Backbone):
    """:class:`e3va.E3VABackbone`, with the same arguments, as a Detectron2 backbone.

    For LazyConfig, ``L(E3VASwin)(preset="swin_t")``. The trunk is frozen from the start, so any
    training loop can train the model.
    """

    _warned = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images to the pyramid; log a warning once if the frozen trunk is still random."""
        if self.trunk.frozen and not self.trunk.loaded and not self._warned:
            self._warned = True
            logger.warning(
                "The frozen trunk (%s) is random, because no weights were loaded into it: set "
                "train.init_checkpoint or MODEL.WEIGHTS; Detectron2's own checkpointer needs "
                "?matching_heuristics=True after the name of a pretrained Swin",
                preset_name(self.trunk.preset) or self.trunk.preset,
            )
        return super().forward(images)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each pyramid level."""
        dims = self.trunk.preset.dims
        return {
            name: ShapeSpec(channels=dims[level], stride=PATCH * 2**level)
            for level, name in enumerate(LEVELS)
            if name in self.out_features
        }

    @property
    def size_divisibility(self) -> int:
        """The largest stride, because an FPN, which adds levels, needs multiples of it."""
        return max(shape.stride for shape in self.output_shape().values())

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The constraints on padded images, see :class:`detectron2.modeling.Backbone`."""
        return {"size_divisibility": self.size_divisibility}


def model_parts(model: nn.Module) -> dict[str, nn.Module | None]:
    """Return the parts of a model for reports of parameters and memory; no neck is None."""
    _, bottom_up = find_backbone(model)
    neck = [m for m in model.backbone.children() if m is not bottom_up]
    if isinstance(model.backbone.forward, LeanPyramid):  # it runs in place of the FPN's forward
        neck.append(model.backbone.forward.top_down)
    heads = [m for name, m in model.named_children() if name != "backbone"]
    return {
        "trunk": bottom_up.trunk,
        "highway": bottom_up.highway,
        "neck": nn.ModuleList(neck) if neck and model.backbone is not bottom_up else None,
        "heads": nn.ModuleList(heads),
    }


@BACKBONE_REGISTRY.register()
def build_e3va_swin_backbone(cfg, input_shape: ShapeSpec) -> E3VASwin:
    """Build the backbone without an FPN from ``cfg.MODEL.E3VA``, see :func:`add_e3va_config`."""
    return _build_bottom_up(cfg, input_shape, cfg.MODEL.E3VA.OUT_FEATURES)


def _build_bottom_up(cfg, input_shape: ShapeSpec, out_features: list[str]) -> E3VASwin:
    if input_shape.channels != 3:
        raise UserError(f"{input_shape.channels} image channels: a Swin trunk expects 3")
    node = cfg.MODEL.E3VA
    return E3VASwin(
        node.PRESET,
        {name.lower(): value for name, value in node.HIGHWAY.items() if value is not None},
        memory=node.MEMORY,
        trunk_precision=node.TRUNK_PRECISION,
        out_features=out_features,
    )


def _build_fpn(cfg, input_shape: ShapeSpec, make_top_block) -> FPN:
    # Only the levels that the FPN reads: the norms of other levels would get no gradient.
    bottom_up = _build_bottom_up(cfg, input_shape, cfg.MODEL.FPN.IN_FEATURES)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=make_top_block(bottom_up),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_e3va_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build the backbone with an FPN and a pooled p6, for Mask R-CNN and Cascade R-CNN."""
    return _build_fpn(cfg, input_shape, lambda bottom_up: LastLevelMaxPool())


def p6_and_p7(preset: str | SwinPreset, out_channels: int) -> LastLevelP6P7:
    """Build RetinaNet's top block for an FPN, which reads the backbone's p3 of stride 32."""
    return LastLevelP6P7(get_preset(preset).dims[-1], out_channels, in_feature="p3")


@BACKBONE_REGISTRY.register()
def build_retinanet_e3va_swin_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build the backbone with an FPN and convolutional p6 and p7, for RetinaNet."""
    return _build_fpn(
        cfg,
        input_shape,
        lambda bottom_up: p6_and_p7(bottom_up.trunk.preset, cfg.MODEL.FPN.OUT_CHANNELS),
    )
