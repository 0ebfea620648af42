"""Detectron2's augmentations for images of any shape."""

import detectron2.data.transforms as T
import numpy as np


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge`` whose results have sides of at least 1 pixel.

    Where ``max_size`` limits a long and narrow image, Detectron2's class rounds the shorter side
    down to 0.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform of an image [H, W, C]."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform
