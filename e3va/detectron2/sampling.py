"""Random samples of anchors and proposals that depend on the image, not on its process."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from torch import nn

from ..utils.seeding import seed_everything

# The methods that draw a sample; Detectron2 calls them for one image after another.
_METHODS = {RPN: "_subsample_labels", ROIHeads: "_sample_proposals"}


@contextlib.contextmanager
def sample_by_image(model: nn.Module, examples: Sequence[Any], *key: int | str) -> Iterator[None]:
    """Seed the samples of RPN and ROI heads, for each image, from ``key`` and the image.

    The sample of an image is then the same however processes or parts share a batch. ``examples``
    are the input of the forward pass inside the block.
    """
    images = [
        e.get("image_id", e.get("file_name", k)) if isinstance(e, dict) else k
        for k, e in enumerate(examples)
    ]
    patched = []
    for name, module in model.named_modules():
        for kind, method in _METHODS.items():
            if isinstance(module, kind):
                patched.append((module, method, vars(module).get(method)))
                setattr(module, method, _seeded(getattr(module, method), images, (*key, name)))
    try:
        yield
    finally:
        for module, method, before in patched:
            delattr(module, method)
            if before is not None:
                setattr(module, method, before)


def _seeded(method: Callable, images: list[int | str], key: tuple[int | str, ...]) -> Callable:
    coming = iter(images)

    def draw(*args, **kwargs):
        seed_everything(*key, next(coming, "more"))
        return method(*args, **kwargs)

    return draw
