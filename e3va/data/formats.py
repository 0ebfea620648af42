"""Annotations of instances in the formats that people have, read as COCO-format data."""

import os
from pathlib import Path

from .coco import READ_ALL, CocoData, ReadOptions, list_categories, load_json, read_coco


def read_annotations(
    path: str | os.PathLike,
    images: str | os.PathLike | None,
    options: ReadOptions = READ_ALL,
    split: str = "train",
) -> CocoData:
    """Read and check annotations of instances.

    Args:
        path: COCO-format file.
        images: folder of the images; None where the annotations name it.
        options: what to read, and what to leave out.
        split: split to read where ``path`` names several, ``"train"`` or ``"val"``.

    Raises:
        UserError: there are no annotations at the path, or they have a mistake, see
            :func:`e3va.data.coco.read_content`.
    """
    del split
    return read_coco(Path(path).expanduser(), Path(images).expanduser(), options)


def read_class_names(path: str | os.PathLike, images: str | os.PathLike | None = None) -> list[str]:
    """Return the class names that :func:`read_annotations` finds; images need not exist."""
    del images
    return [c["name"] for c in list_categories(load_json(path), path, lambda *_: None)]


def own_validation(path: str | os.PathLike) -> bool:
    """Return whether a path of annotations also names validation data of its own."""
    del path
    return False
