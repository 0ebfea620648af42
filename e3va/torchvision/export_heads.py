"""Detectors for one image in a form that :func:`torch.export.export` can follow at every size.

They choose the same boxes as the models' own code, whose branches depend on how many boxes are
found. Class by class NMS runs on boxes that are moved apart, as torchvision does for few boxes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.ops import nms, roi_align
from torchvision.ops.poolers import LevelMapper

from .cascade import AlignedPooler, CascadeRoIHeads
from .one_stage import LabeledFCOS, LabeledRetinaNet

Found = dict[str, Tensor]
STRIDES = (4, 8, 16, 32)


def _counted(places: Tensor) -> Tensor:
    """Return places whose number depends on the image; the exporter needs a bound of it."""
    torch._check(places.shape[0] >= 0)
    return places


def _select(mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    places = _counted(torch.where(mask)[0])
    return [tensor.index_select(0, places) for tensor in tensors]


def _clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip boxes [..., 4] to an image of ``size`` (H, W)."""
    height, width = (torch.scalar_tensor(side, dtype=boxes.dtype) for side in size)
    limits = torch.stack([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limits)


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, size: Sequence[int], count: int
) -> Tensor:
    """Return the places of at most ``count`` boxes after NMS inside each group, best first."""
    apart = torch.scalar_tensor(torch.sym_max(*size) + 1, dtype=boxes.dtype)
    kept = nms(boxes + (groups.to(boxes.dtype) * apart)[:, None], scores, iou)
    return _counted(kept)[:count]


def _by_place(x: Tensor, channels: int) -> Tensor:
    """Map a head's output [1, A · channels, H, W] to [H · W · A, channels]."""
    return x[0].unflatten(0, (-1, channels)).permute(2, 3, 0, 1).flatten(0, 2)


def _anchors(generator: nn.Module, levels: Sequence[Tensor], padded: Sequence[int]) -> list[Tensor]:
    sizes = [level.shape[-2:] for level in levels]
    generator.set_cell_anchors(torch.float32, levels[0].device)
    strides = [[side // own for side, own in zip(padded, size, strict=True)] for size in sizes]
    return generator.grid_anchors(sizes, strides)


def propose(
    rpn: nn.Module, levels: Sequence[Tensor], size: Sequence[int], padded: Sequence[int]
) -> Tensor:
    """Compute torchvision's region proposals [N, 4] of one image from its levels [1, C, H, W]."""
    objectness, deltas = rpn.head(list(levels))
    boxes, scores, groups = [], [], []
    parts = zip(objectness, deltas, _anchors(rpn.anchor_generator, levels, padded), strict=True)
    for number, (logits, delta, anchors) in enumerate(parts):
        own = _by_place(logits, 1)[:, 0]
        own, best = own.topk(torch.sym_min(rpn.pre_nms_top_n(), own.shape[0]))
        delta = _by_place(delta, 4).index_select(0, best)
        boxes.append(rpn.box_coder.decode_single(delta, anchors.index_select(0, best)))
        scores.append(own)
        groups.append(torch.full_like(own, number))
    boxes = _clip(torch.cat(boxes), size)
    scores = torch.cat(scores).sigmoid()
    sound = (_sides(boxes) >= rpn.min_size).all(1) & (scores >= rpn.score_thresh)
    boxes, scores, groups = _select(sound, boxes, scores, torch.cat(groups))
    kept = _suppress(boxes, scores, groups, rpn.nms_thresh, size, rpn.post_nms_top_n())
    return boxes.index_select(0, kept)


def pool(pooler: nn.Module, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Compute RoIAlign [N, C, side, side] of one image's boxes, each on the level of its size."""
    aligned = isinstance(pooler, AlignedPooler)
    ratio = -1 if aligned else pooler.sampling_ratio
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    level_of = LevelMapper(2, 5)([boxes])
    pooled = boxes.new_zeros(boxes.shape[0], levels[0].shape[1], *pooler.output_size)
    for number, (level, stride) in enumerate(zip(levels, STRIDES, strict=False)):
        places = _counted(torch.where(level_of == number)[0])
        own = rois.index_select(0, places)
        out = roi_align(level, own, pooler.output_size, 1 / stride, ratio, aligned)
        pooled = pooled.index_put((places,), out)
    return pooled


def _choose(heads: nn.Module, boxes: Tensor, probabilities: Tensor, size: Sequence[int]) -> Found:
    """Choose detections from boxes [N, classes or 1, 4] and probabilities [N, 1 + classes]."""
    scores = probabilities[:, 1:]
    labels = torch.arange(1, probabilities.shape[1]).expand_as(scores).reshape(-1)
    boxes = boxes.expand(-1, scores.shape[1], -1).reshape(-1, 4)
    scores = scores.reshape(-1)
    sound = (scores > heads.score_thresh) & (_sides(boxes) >= 1e-2).all(1)
    boxes, scores, labels = _select(sound, boxes, scores, labels)
    kept = _suppress(boxes, scores, labels, heads.nms_thresh, size, heads.detections_per_img)
    named = {"boxes": boxes, "scores": scores, "labels": labels}
    return {name: value.index_select(0, kept) for name, value in named.items()}


def _cascade(
    heads: CascadeRoIHeads, levels: Sequence[Tensor], boxes: Tensor, size: Sequence[int]
) -> Found:
    total = 0
    for predictor, head, coder in zip(
        heads.box_predictor, heads.box_head, heads.box_coders, strict=True
    ):
        logits, deltas = predictor(head(pool(heads.box_roi_pool, levels, boxes)))
        total = total + logits.softmax(-1) / len(heads.box_head)
        boxes = _clip(coder.decode_single(deltas, boxes), size)
    return _choose(heads, boxes[:, None], total, size)


def detect_in_two_steps(
    model: nn.Module, features: dict[str, Tensor], size: Sequence[int], padded: Sequence[int]
) -> Found:
    """Compute the detections of torchvision's R-CNNs, or of a cascade, for one image.

    Args:
        model: a model with ``rpn`` and ``roi_heads``.
        features: levels of the pyramid [1, C, H, W].
        size: height and width of the image, without padding.
        padded: height and width of the padded image.

    Returns:
        ``boxes`` [N, 4] in pixels of the image, ``scores`` [N], ``labels`` [N] from 1, and with a
        mask head ``masks`` [N, 1, side, side], probabilities inside the boxes.
    """
    heads, levels = model.roi_heads, list(features.values())
    boxes = propose(model.rpn, levels, size, padded)
    if isinstance(heads, CascadeRoIHeads):
        found = _cascade(heads, levels, boxes, size)
    else:
        logits, deltas = heads.box_predictor(
            heads.box_head(pool(heads.box_roi_pool, levels, boxes))
        )
        decoded = heads.box_coder.decode_single(deltas, boxes).unflatten(1, (-1, 4))[:, 1:]
        found = _choose(heads, _clip(decoded, size), logits.softmax(-1), size)
    if heads.has_mask():
        pooled = pool(heads.mask_roi_pool, levels, found["boxes"])
        logits = heads.mask_predictor(heads.mask_head(pooled))
        own = found["labels"][:, None, None, None].expand(-1, 1, *logits.shape[2:])
        found["masks"] = logits.sigmoid().gather(1, own)
    return found


def detect_in_one_step(
    model: LabeledRetinaNet | LabeledFCOS,
    features: dict[str, Tensor],
    size: Sequence[int],
    padded: Sequence[int],
) -> Found:
    """Compute the detections of RetinaNet or FCOS; see :func:`detect_in_two_steps`."""
    levels, centred = list(features.values()), isinstance(model, FCOS)
    decode = model.box_coder.decode if centred else model.box_coder.decode_single
    boxes, scores, labels = [], [], []
    anchors = _anchors(model.anchor_generator, levels, padded)
    for level, own in zip(levels, anchors, strict=True):
        outputs = model.head([level])
        probabilities = outputs["cls_logits"][0].sigmoid()
        if centred:
            probabilities = (probabilities * outputs["bbox_ctrness"][0].sigmoid()).sqrt()
        classes, flat = probabilities.shape[1], probabilities.flatten()
        best, place = flat.topk(torch.sym_min(model.topk_candidates, flat.shape[0]))
        anchor = place // classes
        deltas = outputs["bbox_regression"][0].index_select(0, anchor)
        boxes.append(decode(deltas, own.index_select(0, anchor)))
        scores.append(best)
        labels.append(place % classes)
    boxes, scores, labels = _clip(torch.cat(boxes), size), torch.cat(scores), torch.cat(labels)
    boxes, scores, labels = _select(scores > model.score_thresh, boxes, scores, labels)
    kept = _suppress(boxes, scores, labels, model.nms_thresh, size, model.detections_per_img)
    named = {"boxes": boxes, "scores": scores, "labels": labels + 1}
    found = {name: value.index_select(0, kept) for name, value in named.items()}
    sound = (_sides(found["boxes"]) > 0).all(1)
    return dict(zip(found, _select(sound, *found.values()), strict=True))
