"""Images as Detectron2's arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy

from ..data.images import read_image


def read_array(record: Mapping[str, Any], image_format: str) -> np.ndarray:
    """Read the image of a dataset dict as an array [H, W, 3], see :func:`~.images.read_image`.

    ``image_format`` is one of Detectron2's: ``"RGB"`` and ``"BGR"`` give uint8. If the dict has
    ``width`` and ``height``, the picture has this size.
    """
    sized = "width" in record and "height" in record
    size = (record["width"], record["height"]) if sized else None
    return convert_PIL_to_numpy(read_image(record["file_name"], size), image_format)
