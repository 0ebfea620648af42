"""The transform of all models: it resizes images and targets, and detections back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import floor

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from .masks import RunLengthMasks, encode_masks, nearest_places, paste_masks

UNPASTED = "unpasted_masks"  # entry of a detector's output: masks inside the boxes
# Each thread has its own, because threads may share a model.
_unpasted = ContextVar("unpasted", default=False)


class Transform(GeneralizedRCNNTransform):
    """torchvision's transform for images of any shape and for many objects.

    For ordinary images its numbers are torchvision's. A side of a resized image has at least one
    pixel. The ``masks`` of a target may be :class:`RunLengthMasks`. In a block of
    :func:`unpasted_masks`, detections have masks inside their boxes instead of full masks.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, with one copy of the image."""
        mean, std = (image.new_tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        return (image - mean).div_(std)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image [3, H, W] and its target; see torchvision's transform."""
        sides = image.shape[-2:]
        shorter = self.torch_choice(self.min_size) if self.training else self.min_size[-1]
        scale = min(shorter / min(sides), self.max_size / max(sides))
        size = tuple(max(1, floor(side * scale)) for side in sides)
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            before = target["boxes"]
            target["boxes"] = boxes = resize_boxes(before, sides, size)
            if "masks" in target:
                target["masks"] = _resize_masks(target["masks"], size)
            lost = _have_area(before) & ~_have_area(boxes)  # to rounding
            if lost.any():
                target |= {k: target[k][~lost] for k in ("boxes", "labels", "masks") if k in target}
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return detections for the images' own sizes; see torchvision's transform."""
        if _unpasted.get() and not self.training:
            for found in result:
                if "masks" in found:
                    found[UNPASTED] = found.pop("masks")
        return super().postprocess(result, image_shapes, original_image_sizes)


def _have_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _resize_masks(masks: Tensor | RunLengthMasks, size: tuple[int, int]) -> Tensor | RunLengthMasks:
    if isinstance(masks, RunLengthMasks):
        return masks.resize(size)
    rows, columns = map(nearest_places, masks.shape[-2:], size)
    return masks[:, rows[:, None].to(masks.device), columns.to(masks.device)].byte()


@contextmanager
def unpasted_masks() -> Iterator[None]:
    """Let models return masks inside boxes, ``unpasted_masks`` [N, 1, side, side], in the block.

    A model without a :class:`Transform` does not change.
    """
    token = _unpasted.set(True)
    try:
        yield
    finally:
        _unpasted.reset(token)


def detect(model: nn.Module, image: Tensor, threshold: float = 0.0) -> dict[str, Tensor]:
    """Return a model's output for one image [3, H, W] in 0..1, on the CPU.

    Detections with a score of at least ``threshold`` stay; their masks are
    :class:`RunLengthMasks` of the image's size, pasted and encoded one at a time.
    """
    return detect_batch(model, [image], [threshold])[0]


def detect_batch(
    model: nn.Module, images: Sequence[Tensor], thresholds: Sequence[float]
) -> list[dict[str, Tensor]]:
    """Return :func:`detect` for each image and its threshold, from one call of the model."""
    with unpasted_masks():
        outputs = model(list(images))
    results = []
    for found, image, threshold in zip(outputs, images, thresholds, strict=True):
        if "scores" in found:
            kept = found["scores"] >= threshold
            found = {name: value[kept] for name, value in found.items()}
            if UNPASTED in found:
                size = image.shape[-2:]
                found["masks"] = paste_masks(found.pop(UNPASTED), found["boxes"], size)
            elif "masks" in found:
                found["masks"] = encode_masks(found["masks"])
        results.append({name: value.to("cpu") for name, value in found.items()})
    return results
