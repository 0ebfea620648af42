"""Masks of one image that take little memory: predicted ones in boxes, annotated ones as RLE.

Both stand for [N, H, W] and make one mask [H, W] at a time. They give the numbers of Detectron2's
own classes, which hold all N·H·W at once.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import detectron2.data.detection_utils as utils
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetMapper
from detectron2.layers import ROIAlign
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from detectron2.structures.masks import polygons_to_bitmask
from torch import Tensor, nn

Index = int | slice | list[int] | Tensor


@contextlib.contextmanager
def masks_on_demand(model: nn.Module) -> Iterator[None]:
    """Within this context, a model in evaluation mode returns ``pred_masks`` as ``PastedMasks``.

    It applies to models whose masks come from Detectron2's ROI heads and pass through its
    ``detector_postprocess``: GeneralizedRCNN, PanopticFPN and their subclasses. Outputs of other
    models do not change.
    """
    heads = [module for module in model.modules() if isinstance(module, ROIHeads)]
    hooks = [module.register_forward_hook(_keep_in_boxes) for module in heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _keep_in_boxes(heads: ROIHeads, _: Any, output: tuple[list[Instances], dict]) -> None:
    for found in () if heads.training else output[0]:
        # detector_postprocess accepts both forms of masks in boxes: [N, 1, M, M] and ROIMasks.
        if found.has("pred_masks") and isinstance(found.pred_masks, Tensor):
            found.pred_masks = _MasksInBoxes(found.pred_masks[:, 0])


class _MasksInBoxes(ROIMasks):
    """Detectron2's masks in boxes, except that ``to_bitmasks`` pastes later."""

    def __getitem__(self, item: Index) -> "_MasksInBoxes":
        return _MasksInBoxes(super().__getitem__(item).tensor)

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> Any:
        # detector_postprocess reads only the attribute ``tensor`` of the result.
        pasted = PastedMasks(self.tensor, boxes.tensor, (height, width), threshold)
        return SimpleNamespace(tensor=pasted)


class PastedMasks:
    """Predicted masks [N, H, W] of one image; each is pasted into the image when it is read.

    ``masks[k]`` and iteration give single masks [H, W], bool. A slice, a list or a tensor of
    indices, and a bool tensor [N] select several masks and paste none. ``np.asarray`` pastes all.

    Args:
        masks: probabilities [N, M, M] inside the boxes.
        boxes: x0, y0, x1, y1 [N, 4] in the image's pixels.
        image_size: height and width of the image.
        threshold: lowest probability of a mask's pixels.
        like: tensor with the device and dtype of the single masks; by default bool, and the device
            of ``masks``. Masks are always pasted on the latter, so ``to`` changes no pixel.
    """

    def __init__(
        self,
        masks: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        threshold: float = 0.5,
        like: Tensor | None = None,
    ):
        self.masks, self.boxes = masks, boxes
        self.image_size, self.threshold = image_size, threshold
        self.like = masks.new_empty(0, dtype=torch.bool) if like is None else like

    @property
    def device(self) -> torch.device:
        """The device of the single masks."""
        return self.like.device

    def to(self, *args: Any, **kwargs: Any) -> "PastedMasks":
        """Return the same masks on another device or with another dtype, see ``Tensor.to``."""
        return self._with(self.masks, self.boxes, self.like.to(*args, **kwargs))

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, item: Index) -> "Tensor | PastedMasks":
        if isinstance(item, Tensor):
            item = item.to(self.masks.device)
        masks, boxes = self.masks[item], self.boxes[item]
        if masks.dim() == 3:
            return self._with(masks, boxes, self.like)
        pasted = ROIMasks(masks[None]).to_bitmasks(
            Boxes(boxes[None]), *self.image_size, self.threshold
        )
        return pasted.tensor[0].to(self.like)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        everything = np.empty((len(self), *self.image_size), bool)
        for target, mask in zip(everything, self, strict=True):
            target[:] = mask.cpu().numpy()
        return everything if dtype is None else everything.astype(dtype)

    def _with(self, masks: Tensor, boxes: Tensor, like: Tensor) -> "PastedMasks":
        return PastedMasks(masks, boxes, self.image_size, self.threshold, like)


class RLEMasks(BitMasks):
    """Annotated masks [N, H, W] of one image as RLE; used like :class:`BitMasks`.

    ``tensor`` decodes all masks at once. Everything that a training step of Detectron2 uses decodes
    one at a time.

    Args:
        rles: compressed RLEs of N masks, each of the size ``image_size``.
        image_size: height and width in pixels.
        device: device of all tensors that are returned.
    """

    def __init__(
        self,
        rles: list[dict],
        image_size: Sequence[int],
        device: torch.device | str = "cpu",
    ):
        self.rles = rles
        self.image_size = torch.Size(image_size)
        self._like = torch.empty(0, dtype=torch.bool, device=device)

    @classmethod
    def from_segmentations(
        cls, segmentations: Sequence[dict | list], transforms: Any, image_size: tuple[int, int]
    ) -> "RLEMasks":
        """Transform annotated masks one after another, as Detectron2's mapper does.

        Args:
            segmentations: a compressed RLE, or a list of flat polygons, for each mask.
            transforms: the ``TransformList`` of the image.
            image_size: height and width of the transformed image.
        """
        return cls([_transformed(s, transforms, image_size) for s in segmentations], image_size)

    @property
    def tensor(self) -> Tensor:
        """All masks, decoded: [N, H, W] bool."""
        everything = self._like.new_empty((len(self), *self.image_size))
        for target, mask in zip(everything, self, strict=True):
            target.copy_(mask)
        return everything

    @property
    def device(self) -> torch.device:
        """The device of all tensors that are returned."""
        return self._like.device

    def to(self, *args: Any, **kwargs: Any) -> "RLEMasks":
        """Return the same masks for another device, see ``Tensor.to``."""
        return self._with(self.rles, self._like.to(*args, **kwargs).device)

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self._decode, self.rles)

    def __getitem__(self, item: Index) -> "RLEMasks":
        # numpy's indexing is that of tensors, negative indices and errors included.
        item = item.cpu().numpy() if isinstance(item, Tensor) else item
        places = np.atleast_1d(np.arange(len(self))[item])
        return self._with([self.rles[k] for k in places], self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def nonempty(self) -> Tensor:
        """Return whether each mask has a pixel: [N] bool."""
        return torch.tensor([bool(mask_util.area(r)) for r in self.rles], device=self.device).bool()

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes of the masks on the CPU; all zero for an empty mask."""
        boxes = torch.zeros(len(self), 4)
        for box, rle in zip(boxes, self.rles, strict=True):
            x, y, width, height = mask_util.toBbox(rle).tolist()
            box[:] = torch.tensor([x, y, x + width, y + height])
        return Boxes(boxes)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Return the masks inside boxes [N, 4], at [N, mask_size, mask_size] pixels, bool."""
        assert len(boxes) == len(self), f"{len(boxes)} != {len(self)}"
        boxes = boxes.to(self.device)
        cropped = self._like.new_empty((len(self), mask_size, mask_size))
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        rows_of = defaultdict(list)  # many proposals share one object's mask
        for row, rle in enumerate(self.rles):
            rows_of[id(rle)].append(row)
        for rows in rows_of.values():
            mask = self._decode(self.rles[rows[0]]).float()
            rois = torch.nn.functional.pad(boxes[rows], (1, 0))  # all in "image" 0 of one
            cropped[rows] = align(mask[None, None], rois)[:, 0] >= 0.5
        return cropped

    @staticmethod
    def cat(bitmasks_list: list["RLEMasks"]) -> "RLEMasks":
        """Return the masks of several objects of this class, which have the same image size."""
        first = bitmasks_list[0]
        return first._with([r for masks in bitmasks_list for r in masks.rles], first.device)

    def _decode(self, rle: dict) -> Tensor:
        mask = np.ascontiguousarray(mask_util.decode(rle))
        return torch.from_numpy(mask).to(self._like)

    def _with(self, rles: list[dict], device: torch.device) -> "RLEMasks":
        return RLEMasks(rles, self.image_size, device)


def _transformed(segmentation: dict | list, transforms: Any, image_size: tuple[int, int]) -> dict:
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
    else:
        polygons = [np.asarray(p).reshape(-1, 2) for p in segmentation]
        polygons = [p.reshape(-1) for p in transforms.apply_polygons(polygons)]
        mask = polygons_to_bitmask(polygons, *image_size)
    assert mask.shape[:2] == tuple(image_size), (mask.shape, image_size)
    return mask_util.encode(np.asfortranarray(mask != 0, dtype=np.uint8))


class MaskMapper(DatasetMapper):
    """Detectron2's mapper, except that images with an RLE get :class:`RLEMasks`.

    With ``instance_mask_format="bitmask"`` all images get them; otherwise images that have only
    polygons get Detectron2's ``PolygonMasks``.
    """

    def _transform_annotations(self, dataset_dict: dict, transforms: Any, image_shape) -> None:
        kinds = {type(a.get("segmentation")) for a in dataset_dict["annotations"]}
        bitmasks = dict in kinds or self.instance_mask_format == "bitmask"
        if not (self.use_instance_mask and bitmasks):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        objects = [a for a in dataset_dict.pop("annotations") if a.get("iscrowd", 0) == 0]
        segmentations = [a.pop("segmentation") for a in objects]
        for annotation in objects:
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
        instances = utils.annotations_to_instances(objects, image_shape)
        if objects:
            instances.gt_masks = RLEMasks.from_segmentations(segmentations, transforms, image_shape)
            if self.recompute_boxes:
                instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
