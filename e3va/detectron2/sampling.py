"""Random samples of anchors and proposals that follow from the image, not from its process."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import ROIHeads
from torch import nn

from ..utils.seeding import seed_everything

# The methods that draw a sample, which Detectron2 calls for one image after the other.
_METHODS = {RPN: "_subsample_labels", ROIHeads: "_sample_proposals"}


@contextlib.contextmanager
def sample_by_image(model: nn.Module, examples: Sequence[Any], *key: int | str) -> Iterator[None]:
    """Within it, RPN and ROI heads seed the sample of each image from ``key`` and the image.

    So an image's sample is the same however a batch is shared by processes or divided into parts.

    Args:
        model: a Detectron2 model, or one without such parts.
        examples: what the model's forward is given within; an image is known by its ``image_id``,
            its ``file_name``, or else its place.
        key: of the seeds; seeds and iterations.
    """
    images = [_name(example, place) for place, example in enumerate(examples)]
    hidden = []
    for kind, method in _METHODS.items():
        for name, module in model.named_modules():
            if isinstance(module, kind):
                seeded = _seeded(getattr(module, method), images, (*key, name))
                hidden.append((module, method, vars(module).get(method)))
                setattr(module, method, seeded)
    try:
        yield
    finally:
        for module, method, before in hidden:
            delattr(module, method)
            if before is not None:
                setattr(module, method, before)


def _name(example: Any, place: int) -> int | str:
    if isinstance(example, dict):
        return example.get("image_id", example.get("file_name", place))
    return place


def _seeded(method: Callable, images: list[int | str], key: tuple[int | str, ...]) -> Callable:
    coming = iter(images)

    def draw(*args, **kwargs):
        seed_everything(*key, next(coming, "more"))
        return method(*args, **kwargs)

    return draw
