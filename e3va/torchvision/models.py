"""Models and their configs; every checkpoint holds the config of its model."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from ..adapter_files.heads import smallest_anchor
from ..backbone import LEVELS, E3VABackbone
from ..highway.config import (
    DEFAULT_RECIPE,
    RECIPES,
    HighwayConfig,
    as_highway_config,
    highway_config,
)
from ..model_zoo.trunks import DEMO, SCHEME, read_trunk_file
from ..swin.presets import SwinPreset
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError, brief, check_choice
from ..weights.checkpoint import check_same_tensors
from ..weights.loading import (
    Loaded,
    find_trunk,
    load_trunk,
    missing_trunk,
    read_geometry,
    trunk_state,
)
from .boxes import box_iou_in_parts
from .cascade import IOUS, ROI_SETTINGS, AlignedPooler, CascadePredictor, CascadeRoIHeads
from .masks import MaskRoIHeads
from .one_stage import LabeledFCOS, LabeledRetinaNet, fcos_anchors, retinanet_anchors
from .pyramid import LEVEL_NAMES, PyramidBackbone
from .semantic import SemanticFPN
from .transform import Transform

DEMO_TRUNK, RANDOM = DEMO, "random"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as Swin's pretraining
POOLINGS = ("torchvision", "aligned")
MASK_MODELS = ("mask_rcnn", "cascade_mask_rcnn")
BOX_MODELS = ("faster_rcnn", "retinanet", "fcos")
MOST_DETECTIONS = 10000
CANDIDATES = 1000  # for the detections of an image; more if there may be more detections
LIGHT_TRUNK = 96  # channels of stage 0 below which the heads are light too


@dataclass(frozen=True)
class HeadSizes:
    """Widths of neck and heads."""

    channels: int  # channels of the pyramid
    box: int  # width of the two fully connected layers of a box head
    mask: tuple[int, ...]  # channels of each convolution of the mask head
    semantic: int  # channels of the semantic head's convolutions
    rois: int  # number of RoIs that are sampled from each training image
    lr: float  # learning rate (AdamW) at which these widths train well from random weights


HEADS = {
    "standard": HeadSizes(channels=256, box=1024, mask=(256,) * 4, semantic=128, rois=512, lr=3e-4),
    "light": HeadSizes(channels=64, box=256, mask=(64,) * 2, semantic=64, rois=64, lr=2e-3),
}


@dataclass(frozen=True)
class ModelConfig:
    """The config of a model.

    Attributes:
        model: a key of ``MODELS``.
        classes: class names; for label maps the name of label 0 comes first.
        preset: the trunk's geometry.
        trunk: source of the trunk's weights: ``"demo"``, a file's path, an address of the zoo, or
            ``"random"``.
        highway: the highway's config, a recipe's name or a mapping of settings, see
            :class:`e3va.E3VABackbone`; missing options get their defaults.
        memory: memory mode, see :class:`e3va.E3VABackbone`.
        trunk_precision: type in which a frozen trunk computes, see :class:`e3va.E3VABackbone`.
        heads: a key of ``HEADS``.
        size: shorter side of the resized images in pixels.
        max_size: largest longer side of the resized images in pixels.
        jitter: smallest and largest multiple of ``size`` in training.
        category_ids: id of each class in the annotation file; empty for label maps.
        pooling: RoI pooling of a Mask R-CNN or Faster R-CNN: ``"torchvision"``, or ``"aligned"`` as
            in Detectron2 and in the cascade. Weights lose accuracy if the pooling changes after the
            training.
        detections: largest number of detections in an image, at most ``MOST_DETECTIONS``.

    Raises:
        UserError: ``highway`` or ``detections`` has a wrong value.
    """

    model: str
    classes: tuple[str, ...]
    preset: SwinPreset
    trunk: str
    highway: HighwayConfig = RECIPES[DEFAULT_RECIPE]
    memory: str = "standard"
    trunk_precision: str = "auto"
    heads: str = "standard"
    size: int = 480
    max_size: int = 800
    jitter: tuple[float, float] = (0.8, 1.2)
    category_ids: tuple[int, ...] = ()
    pooling: str = "torchvision"
    detections: int = 100

    def __post_init__(self) -> None:
        check_detections(self.detections)
        complete = as_highway_config(self.highway).complete(self.preset.embed_dim)
        object.__setattr__(self, "highway", complete)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers."""
        return json.loads(json.dumps({**asdict(self), "highway": self.highway.to_dict()}))

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str) -> "ModelConfig":
        """Read the result of :meth:`to_dict`, from the file ``source``.

        Raises:
            UserError: a field is missing or unknown, of another type or out of range.
        """
        try:
            preset = SwinPreset(**{k: _tuple(v) for k, v in data["preset"].items()})
            plain = {name: _tuple(value) for name, value in data.items()}
            highway = highway_config(**plain["highway"])
            config = cls(**{**plain, "preset": preset, "highway": highway})
            config._check_values()
            return config
        except (LookupError, TypeError, AttributeError, ValueError, UserError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else brief(error)
            raise UserError(
                f"{source}: its model description cannot be read ({reason}): it was altered, or "
                "another program or version wrote it; copy or download it again"
            ) from None

    def _check_values(self) -> None:
        """Check types and ranges of the fields, which anybody may have written into a file."""
        factors, ids = self.jitter, self.category_ids
        sound = {
            **{name: isinstance(getattr(self, name), str) for name in _TEXTS},
            **{name: getattr(self, name) in _SIDES for name in ("size", "max_size")},
            "jitter": len(factors) == 2 and all(0 < factor <= 8 for factor in factors),
            "category_ids": len(ids) in (0, len(self.classes))
            and all(isinstance(number, int) for number in ids),
        }
        for name, is_sound in sound.items():
            if not is_sound:
                raise ValueError(f"{name} {getattr(self, name)!r}")


_TEXTS = ("model", "trunk", "memory", "trunk_precision", "heads", "pooling")
_SIDES = range(1, 16385)  # pixels of an image


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_trunk(trunk: str) -> tuple[dict[str, Tensor], SwinPreset, str]:
    """Return tensors, geometry and file name of a pretrained Swin.

    ``trunk`` is ``"demo"``, which comes with the library, a weights file in any layout of
    :data:`e3va.weights.layouts.LAYOUTS`, a trunk of the zoo (its name or ``e3va://…``),
    or one on the hub (``hf://USER/NAME``).
    """
    state, source = read_trunk_file(trunk)
    prefix = find_trunk(state, source)
    if prefix is None:
        raise missing_trunk(state, source)
    return state, read_geometry(trunk_state(state, prefix), source), source


def default_heads(preset: SwinPreset) -> str:
    """Return ``"light"`` for trunks that are smaller than Swin-T, else ``"standard"``."""
    return "light" if preset.embed_dim < LIGHT_TRUNK else "standard"


def check_detections(count: Any) -> None:
    """Raise a UserError unless ``count`` is a possible largest number of detections."""
    if type(count) is not int or not 1 <= count <= MOST_DETECTIONS:
        raise UserError(
            f"detections {count!r}: expected a whole number of detections in an image, from 1 to "
            f"{MOST_DETECTIONS}"
        )


def build_model(
    config: ModelConfig, trunk: SwinTrunk | None = None, bottom_up: E3VABackbone | None = None
) -> nn.Module:
    """Build a model with random weights.

    Args:
        config: the model's config.
        trunk: trunk to share with other models, see :class:`e3va.E3VABackbone`; None to build one.
        bottom_up: backbone to use, with the levels of :func:`levels_of`; None to build the one that
            ``config`` describes.

    Raises:
        UserError: a setting is unknown, or the trunk cannot be shared.
    """
    for key, known in (("model", MODELS), ("heads", HEADS), ("pooling", POOLINGS)):
        check_choice(key, getattr(config, key), known)
    # Neck and heads get the same random weights with every highway, for comparisons.
    with torch.random.fork_rng(devices=[]):
        bottom_up = bottom_up or E3VABackbone(
            config.preset,
            config.highway,
            memory=config.memory,
            trunk_precision=config.trunk_precision,
            trunk=trunk,
            out_features=levels_of(config.model),
        )
    top = {"semantic_fpn": None, "retinanet": "c5", "fcos": "p5"}.get(config.model, "pool")
    backbone = PyramidBackbone(bottom_up, HEADS[config.heads].channels, top)
    model = MODELS[config.model](config, backbone)
    limit_detections(model, config.detections)
    return model


def levels_of(model: str) -> tuple[str, ...]:
    """Return the levels of the backbone that a kind of model reads."""
    return LEVELS[1:] if model in ("retinanet", "fcos") else LEVELS


def limit_detections(model: nn.Module, count: int) -> None:
    """Set the largest number of detections in an image, from 1 to ``MOST_DETECTIONS``.

    A detector then also chooses from as many candidates. A model for label maps does not change.

    Raises:
        UserError: ``count`` is no such number.
    """
    check_detections(count)
    candidates = max(CANDIDATES, count)
    if isinstance(model, GeneralizedRCNN):
        model.roi_heads.detections_per_img = count
        for limits in (model.rpn._pre_nms_top_n, model.rpn._post_nms_top_n):
            limits["testing"] = candidates
    elif not isinstance(model, SemanticFPN):
        model.detections_per_img, model.topk_candidates = count, candidates


def load_pretrained(model: nn.Module, trunk: str) -> Loaded:
    """Load pretrained Swin weights, see :func:`read_trunk`, into the model's trunk."""
    state, source = read_trunk_file(trunk)
    module = model.backbone.bottom_up.trunk
    loaded = load_trunk(module, state, source)
    if trunk.startswith(SCHEME):  # the source is the cached file
        module.origin = replace(module.origin, source=trunk)
    return loaded


def model_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Return trunk, highway, neck and heads of a model, for :mod:`e3va.utils.measure`."""
    bottom_up = model.backbone.bottom_up
    heads = [child for name, child in model.named_children() if name != "backbone"]
    return {
        "trunk": bottom_up.trunk,
        "highway": bottom_up.highway,
        "neck": model.backbone.fpn,
        "heads": nn.ModuleList(heads),
    }


def make_transform(config: ModelConfig) -> Transform:
    """Return the transform that resizes and normalizes a model's images."""
    least, most = (round(config.size * factor) for factor in config.jitter)
    sizes = sorted({round(least + (most - least) * i / 8) for i in range(9)})
    # In evaluation torchvision uses the last size.
    sizes = (*(s for s in sizes if s != config.size), config.size)
    return Transform(sizes, config.max_size, list(MEAN), list(STD))


def _rpn(config: ModelConfig, channels: int) -> RegionProposalNetwork:
    least = smallest_anchor(config.size)
    sizes = tuple((least * 2**level,) for level in range(5))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 1000, "testing": 1000},
        nms_thresh=0.7,
    )
    rpn.box_similarity = box_iou_in_parts
    return rpn


def _pooler(aligned: bool, side: int) -> nn.Module:
    if aligned:
        return AlignedPooler(LEVEL_NAMES, side)
    pooler = MultiScaleRoIAlign(LEVEL_NAMES, side, 2)
    # By itself the pooler infers the strides from its first images, which is wrong if those have
    # 33 to 45 or 65 to 67 pixels.
    pooler.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    pooler.map_levels = LevelMapper(2, 5)
    return pooler


def _rcnn(config: ModelConfig, backbone: PyramidBackbone) -> GeneralizedRCNN:
    """Build a Faster R-CNN or Mask R-CNN, the latter with one box stage or those of a cascade."""
    sizes, channels, count = HEADS[config.heads], backbone.out_channels, 1 + len(config.classes)
    cascade = config.model == "cascade_mask_rcnn"
    stages, predictor = (len(IOUS), CascadePredictor) if cascade else (1, FastRCNNPredictor)
    aligned = cascade or config.pooling == "aligned"
    # Random numbers are drawn in this order.
    box_heads = [TwoMLPHead(channels * 49, sizes.box) for _ in range(stages)]
    predictors = [predictor(sizes.box, count) for _ in range(stages)]
    settings = {**ROI_SETTINGS, "batch_size_per_image": sizes.rois}
    if config.model in MASK_MODELS:
        settings |= {
            "mask_roi_pool": _pooler(aligned, 14),
            "mask_head": MaskRCNNHeads(channels, sizes.mask, 1),
            "mask_predictor": MaskRCNNPredictor(sizes.mask[-1], sizes.mask[-1], count),
        }
    pooler = _pooler(aligned, 7)
    if cascade:
        roi_heads = CascadeRoIHeads(pooler, box_heads, predictors, **settings)
    else:
        heads = MaskRoIHeads if config.model in MASK_MODELS else RoIHeads
        roi_heads = heads(pooler, *box_heads, *predictors, **settings)
    return GeneralizedRCNN(backbone, _rpn(config, channels), roi_heads, make_transform(config))


def _retinanet(config: ModelConfig, backbone: PyramidBackbone) -> LabeledRetinaNet:
    anchors = retinanet_anchors(smallest_anchor(config.size))
    model = LabeledRetinaNet(backbone, len(config.classes), anchor_generator=anchors)
    model.transform = make_transform(config)
    if config.heads == "light":
        # With torchvision's initial weights, for 256 channels, the signal of 64 channels vanishes.
        for tower in (model.head.classification_head.conv, model.head.regression_head.conv):
            for layer in tower.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def _fcos(config: ModelConfig, backbone: PyramidBackbone) -> LabeledFCOS:
    model = LabeledFCOS(backbone, len(config.classes), anchor_generator=fcos_anchors())
    model.transform = make_transform(config)
    return model


def _semantic_fpn(config: ModelConfig, backbone: PyramidBackbone) -> SemanticFPN:
    channels = HEADS[config.heads].semantic
    return SemanticFPN(backbone, len(config.classes), make_transform(config), channels)


MODELS = {
    "mask_rcnn": _rcnn,
    "cascade_mask_rcnn": _rcnn,
    "faster_rcnn": _rcnn,
    "retinanet": _retinanet,
    "fcos": _fcos,
    "semantic_fpn": _semantic_fpn,
}


def load_state(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict; raise a UserError for tensors that are missing or of another shape."""
    advice = "it was altered after it was written; copy or download it again"
    check_same_tensors(model.state_dict(), state, source, advice)
    model.load_state_dict(state)
