"""Split data without a validation set of their own into training and validation data."""

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..utils.errors import UserError
from .coco import CocoData, ReadOptions, has_object, without_empty


def split_images(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into training and validation images.

    The split depends on the set of files and on the seed, and not on the order of the list. All
    entries of one file are on the same side. At least one file is on each side.

    Args:
        keys: path of each image's file.
        share: share of the files to validate on, between 0 and 1.
        seed: seed of the random choice.

    Returns:
        The positions in ``keys`` of the training images and of the validation images, ascending.

    Raises:
        UserError: the share is not between 0 and 1, or there are fewer than two files.
    """
    if not 0 < share < 1:
        raise UserError(f"validation split {share}: expected a share between 0 and 1, such as 0.1")
    names = [os.path.normpath(key) for key in keys]
    files = sorted(set(names))
    if len(files) < 2:
        raise UserError(
            f"validation split {share} of {len(files)} image file{'s' * (len(files) != 1)}: "
            "expected at least two, one to train on and one to validate on; add images, or name "
            "validation data"
        )
    count = min(max(round(share * len(files)), 1), len(files) - 1)
    chosen = set(random.Random(seed).sample(files, count))
    sides: tuple[list[int], list[int]] = ([], [])
    for position, name in enumerate(names):
        sides[name in chosen].append(position)
    return sides


def split_coco(
    data: CocoData, share: float, seed: int, options: ReadOptions
) -> tuple[CocoData, CocoData]:
    """Split annotated images into training and validation data, see :func:`split_images`.

    Args:
        data: all images, also those without objects: read with ``training=False``.
        share: share of the image files to validate on, between 0 and 1.
        seed: seed of the random choice.
        options: options for the training data, which may leave out images without objects.

    Returns:
        The training data and the validation data. The validation data keep images without objects,
        and their ``notes`` are empty: what was left out of the file is counted once.

    Raises:
        UserError: see :func:`split_images`; or no object is left to train on, or to validate on.
    """
    sides = split_images([image["path"] for image in data.images], share, seed)
    return divide_coco(data, sides, options)


def divide_coco(
    data: CocoData, sides: Sequence[Sequence[int]], options: ReadOptions
) -> tuple[CocoData, CocoData]:
    """Split annotated images by the positions of the two sides; see :func:`split_coco`."""
    options = replace(options, training=True)
    without_empty(data, options)  # if there is no object at all, the split is not the cause
    parts = []
    for positions in sides:
        images = [data.images[position] for position in positions]
        annotations = {image["id"]: data.annotations[image["id"]] for image in images}
        parts.append(replace(data, images=images, annotations=annotations, notes=Counter()))
    train, val = parts
    train.notes = data.notes
    uses = ((train, "train", "train on", "smaller"), (val, "validate", "score", "larger"))
    for part, verb, use, change in uses:
        if not any(map(has_object, part.annotations.values())):
            raise UserError(
                f"{data.source}: the split leaves {len(part.images)} of {len(data.images)} images "
                f"to {verb} on, with no object: expected at least one object to {use}; give a "
                f"{change} share for validation, another seed, or validation data"
            )
    return without_empty(train, options), val
