"""Adapters of the torchvision framework in a Detectron2 model: differences beside the tensors."""

import math
from collections.abc import Iterator

from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.heads import smallest_anchor
from ..utils.errors import UserError


def check_surroundings(model: nn.Module, description: AdapterConfig, source: str) -> None:
    """Check that a model has the anchors and the pooling of an adapter of torchvision.

    The tensors of such an adapter fit other anchors and pooling too, with worse predictions.

    Args:
        model: Detectron2 model that gets the adapter's heads.
        description: description of the adapter; adapters of other frameworks are not checked.
        source: name of the adapter, for messages.

    Raises:
        UserError: anchors or pooling differ; the message has the overrides that set them.
    """
    wanted = list(_overrides(model, description)) if description.framework == "torchvision" else []
    if wanted:
        raise UserError(
            f"{source} was trained by the e3va command, with other anchors or pooling than this "
            f"model: add {' '.join(wanted)}"
        )


def _overrides(model: nn.Module, description: AdapterConfig) -> Iterator[str]:
    size = description.model.get("size")
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN) and isinstance(size, int):
        least = smallest_anchor(size)
        if round(_smallest_anchor_of(rpn)) != least:
            sizes = ",".join(f"[{least * 2**level}]" for level in range(5))
            yield f"model.proposal_generator.anchor_generator.sizes=[{sizes}]"
    heads = getattr(model, "roi_heads", None)
    plain = isinstance(heads, StandardROIHeads) and not isinstance(heads, CascadeROIHeads)
    if plain and description.model.get("pooling", "torchvision") == "torchvision":
        for name in ("box_pooler", "mask_pooler"):
            pooler = getattr(heads, name, None)
            if pooler is not None and pooler.level_poolers[0].aligned:
                yield f"model.roi_heads.{name}.pooler_type=ROIAlign"
                yield f"model.roi_heads.{name}.sampling_ratio=2"


def _smallest_anchor_of(rpn: RPN) -> float:
    x1, y1, x2, y2 = next(iter(rpn.anchor_generator.cell_anchors))[0].tolist()
    return math.sqrt((x2 - x1) * (y2 - y1))
