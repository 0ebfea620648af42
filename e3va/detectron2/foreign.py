"""Adapters of the torchvision framework: what around their tensors has to be as it is there."""

import math

from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..utils.errors import UserError

SMALL_IMAGES = (
    400  # pixels of the shorter side below which that framework's anchors begin at half size
)
ANCHORS = (16, 32)  # pixels, the smallest
_SIZES = "model.proposal_generator.anchor_generator.sizes"


def check_surroundings(model: nn.Module, told: AdapterConfig, source: str) -> None:
    """Check that a model finds and pools regions as the torchvision framework's does; its tensors would
    fit all the same, and its predictions be worse.

    Args:
        model: of Detectron2, for which the adapter's heads are meant.
        told: the adapter's description; nothing is checked of one of another framework.

    Raises:
        UserError: it does not; the text has the overrides by which it does.
    """
    if told.framework != "torchvision":
        return
    wanted = _overrides(model, told)
    if wanted:
        raise UserError(
            f"{source} was trained by the e3va command, whose model differs here from this one: "
            f"add {' '.join(wanted)}"
        )


def _overrides(model: nn.Module, told: AdapterConfig) -> list[str]:
    wanted = []
    size = told.model.get("size")
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN) and isinstance(size, int):
        least = ANCHORS[size >= SMALL_IMAGES]
        if round(_smallest_anchor(rpn)) != least:
            sizes = ",".join(f"[{least * 2**level}]" for level in range(5))
            wanted.append(f"{_SIZES}=[{sizes}]")
    heads = getattr(model, "roi_heads", None)
    plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
    if plain and told.model.get("pooling", "torchvision") == "torchvision":
        for name in ("box_pooler", "mask_pooler"):
            pooler = getattr(heads, name, None)
            if pooler is not None and pooler.level_poolers[0].aligned:
                wanted.append(f"model.roi_heads.{name}.pooler_type=ROIAlign")
                wanted.append(f"model.roi_heads.{name}.sampling_ratio=2")
    return wanted


def _smallest_anchor(rpn: RPN) -> float:
    x1, y1, x2, y2 = next(iter(rpn.anchor_generator.cell_anchors))[0].tolist()
    return math.sqrt((x2 - x1) * (y2 - y1))
