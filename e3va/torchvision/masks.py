"""Masks as run lengths: they are decoded, pasted and encoded one at a time.

A mask of a 12-megapixel image has 12 MB as uint8 and 48 MB as float32; its run lengths have a few
kilobytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import pycocotools.mask
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    expand_boxes,
    expand_masks,
    fastrcnn_loss,
    paste_mask_in_image,
)
from torchvision.ops import roi_align

from ..data.masks import decode_counts

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class RunLengthMasks(Sequence[Tensor]):
    """The masks of an image's objects as run lengths.

    ``masks[2]`` decodes one mask, [H, W] uint8 of 0 and 1; a tensor of places or of booleans [N]
    selects several without decoding them.

    Attributes:
        records: compressed RLE of each mask, as pycocotools has them; they never change.
        size: height and width of the decoded masks in pixels.
        flipped: whether the decoded masks are flipped left to right.
    """

    records: list[dict]
    size: Size
    flipped: bool = False

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: Tensor) -> "RunLengthMasks": ...

    def __getitem__(self, index):
        if isinstance(index, Tensor):
            places = torch.arange(len(self))[index.cpu()].tolist()
            return replace(self, records=[self.records[place] for place in places])
        mask = pycocotools.mask.decode(self.records[index])  # its columns are contiguous
        if mask.shape != self.size or self.flipped:
            rows, columns = map(nearest_places, mask.shape, self.size)
            if self.flipped:
                columns = mask.shape[1] - 1 - columns
            mask = mask.T[columns.numpy()][:, rows.numpy()].T
        return torch.from_numpy(mask)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of masks, height and width."""
        return (len(self), *self.size)

    def flip(self) -> "RunLengthMasks":
        """Return the masks flipped left to right."""
        return replace(self, flipped=not self.flipped)

    def resize(self, size: Size) -> "RunLengthMasks":
        """Return the masks at another size; each pixel is the nearest one of the records."""
        return replace(self, size=tuple(size))

    def to(self, device: torch.device | str) -> "RunLengthMasks":
        """Return these masks; run lengths always stay on the CPU."""
        del device
        return self

    def place(self, corner: Size, size: Size) -> "RunLengthMasks":
        """Return the masks as parts of a larger image that is empty around them.

        Args:
            corner: row and column of the masks' first pixel in the image.
            size: height and width of the image in pixels.
        """
        records = []
        for index in range(len(self)):
            top, left, mask = self.crop(index)
            records.append(_encode_part(mask.numpy(), top + corner[0], left + corner[1], size))
        return RunLengthMasks(records, tuple(size))

    def crop(self, index: int) -> tuple[int, int, Tensor]:
        """Decode only the smallest rectangle with all pixels of a mask.

        Returns:
            Row and column of the rectangle's first pixel, and its pixels [h, w] uint8 of 0 and 1;
            an empty mask has none.
        """
        record = self.records[index]
        if self.flipped or tuple(record["size"]) != self.size:
            record = _encode(self[index])
        x, y, width, height = map(int, pycocotools.mask.toBbox(record))
        ends = decode_counts(record["counts"]).cumsum() - x * self.size[0]
        pixels = np.zeros(width * self.size[0] + 1, np.int8)  # column by column
        if width:
            # An empty run starts and ends at one place.
            np.add.at(pixels, ends[:-1:2], 1)
            np.add.at(pixels, ends[1::2], -1)
        columns = pixels[:-1].cumsum(dtype=np.int8).reshape(width, self.size[0])
        return y, x, torch.from_numpy(columns.T[y : y + height].view(np.uint8))

    def stack(self) -> Tensor:
        """Decode all masks into one tensor [N, H, W] uint8."""
        result = torch.zeros(self.shape, dtype=torch.uint8)
        for place, mask in enumerate(self):
            result[place] = mask
        return result


def nearest_places(length: int, wanted: int) -> Tensor:
    """Return which of ``length`` pixels is the nearest one of each of ``wanted``, as torch does."""
    places = torch.arange(length, dtype=torch.float32)[None, None]
    return F.interpolate(places, size=wanted, mode="nearest")[0, 0].long()


def encode_masks(masks: "Tensor | RunLengthMasks") -> RunLengthMasks:
    """Convert masks [N, H, W] or [N, 1, H, W] to run lengths; values from 0.5 on are objects."""
    if isinstance(masks, RunLengthMasks):
        return masks
    size = tuple(masks.shape[-2:])
    return RunLengthMasks([_encode(mask.reshape(size)) for mask in masks], size)


def paste_masks(masks: Tensor, boxes: Tensor, size: Size) -> RunLengthMasks:
    """Paste masks of boxes [N, 1, side, side] into an image; the pixels equal torchvision's.

    Args:
        masks: probabilities of pixels inside the boxes, from 0 to 1.
        boxes: boxes in the image [N, 4], x1 y1 x2 y2 in pixels.
        size: height and width of the image in pixels.
    """
    padded, scale = expand_masks(masks, padding=1)
    places = expand_boxes(boxes, scale).long().tolist()  # x1 y1 x2 y2 of the outermost pixels
    records = []
    for mask, (x1, y1, x2, y2) in zip(padded[:, 0], places, strict=True):
        top, left = max(0, y1), max(0, x1)
        height, width = max(0, min(size[0], y2 + 1) - top), max(0, min(size[1], x2 + 1) - left)
        box = torch.tensor([x1 - left, y1 - top, x2 - left, y2 - top])
        part = paste_mask_in_image(mask, box, height, width) >= 0.5
        records.append(_encode_part(part.cpu().numpy(), top, left, size))
    return RunLengthMasks(records, tuple(size))


def _encode(mask: Tensor) -> dict:
    pixels = (mask >= 0.5).cpu().numpy().view(np.uint8)
    return pycocotools.mask.encode(np.asfortranarray(pixels))


def _encode_part(mask: np.ndarray, top: int, left: int, size: Size) -> dict:
    """Encode an image that has ``mask`` at a place and is empty around it."""
    columns = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(columns)  # 1 where a run starts, -1 behind its end
    places = [(left + c) * size[0] + top + r for c, r in (np.nonzero(steps == s) for s in (1, -1))]
    starts, ends = places
    apart = starts[1:] != ends[:-1]  # a run may go on in the next column
    starts, ends = starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]
    edges = np.stack([starts, ends], 1).ravel()
    counts = np.diff(edges, prepend=0, append=size[0] * size[1]).tolist()
    record = {"size": list(size), "counts": counts if counts[-1] else counts[:-1]}
    return pycocotools.mask.frPyObjects(record, *size)


def crop_masks(
    masks: Tensor | RunLengthMasks, boxes: Tensor, matched: Tensor, side: int, aligned: bool
) -> Tensor:
    """Sample masks of objects inside boxes, [R, side, side] float; one mask at a time is decoded.

    Args:
        masks: masks of an image's objects, N × H × W.
        boxes: boxes [R, 4], x1 y1 x2 y2 in pixels.
        matched: place of each box's object in ``masks``, [R].
        side: height and width of the samples.
        aligned: whether RoIAlign has the half-pixel offset.
    """
    crops = boxes.new_zeros(len(boxes), side, side)
    owners = matched.cpu()
    for place in owners.unique().tolist():
        own = torch.where(owners == place)[0].to(boxes.device)
        mask = masks[place].to(boxes)[None, None]
        rois = F.pad(boxes[own], (1, 0))  # the first column is the place in the batch of one mask
        crops[own] = roi_align(mask, rois, (side, side), 1.0, aligned=aligned)[:, 0]
    return crops


class MaskRoIHeads(RoIHeads):
    """torchvision's ``RoIHeads`` with masks; in training it reads only the sampled objects' masks.

    Inputs, outputs and numbers are those of torchvision. The ``masks`` of a target may be
    :class:`RunLengthMasks`.
    """

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections and losses, see torchvision's ``RoIHeads.forward``."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        sampled = self.select_training_samples(proposals, targets)
        proposals, matched, labels, box_targets = sampled
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        losses = fastrcnn_loss(*self.box_predictor(pooled), labels, box_targets)
        named = dict(zip(("loss_classifier", "loss_box_reg"), losses, strict=True))
        on = [torch.where(label > 0)[0] for label in labels]
        boxes = [p[chosen] for p, chosen in zip(proposals, on, strict=True)]
        logits = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        logits = self.mask_predictor(logits)
        wanted = [
            crop_masks(target["masks"], box, index[chosen], logits.shape[-1], aligned=False)
            for target, box, index, chosen in zip(targets, boxes, matched, on, strict=True)
        ]
        classes = torch.cat([label[chosen] for label, chosen in zip(labels, on, strict=True)])
        named["loss_mask"] = mask_loss(logits, classes, torch.cat(wanted))
        return [], named


def mask_loss(logits: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean cross-entropy of the masks of each RoI's class.

    Args:
        logits: logits of all classes [R, classes, side, side].
        classes: class of each RoI [R].
        wanted: probabilities of the pixels [R, side, side].
    """
    if not len(logits):
        return logits.sum() * 0
    own = logits[torch.arange(len(classes), device=logits.device), classes]
    return F.binary_cross_entropy_with_logits(own, wanted)
