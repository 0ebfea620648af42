"""Split data without a validation set of their own into training and validation data."""

import os
import random
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..utils.errors import UserError
from .coco import CocoData, ReadOptions, has_object, without_empty


def image_names(data: CocoData) -> list[str]:
    """Return the names that the split of annotated images depends on, with forward slashes.

    They are relative to the folder of YOLO's ``data.yaml``, and else to the folder of the images.
    So they stay the same if the data move, or if ``data.yaml`` names further folders.
    """
    if Path(data.source).suffix.lower() in (".yaml", ".yml"):
        return names_below(os.path.dirname(data.source), [image["path"] for image in data.images])
    return [Path(os.path.normpath(image["file_name"])).as_posix() for image in data.images]


def names_below(folder: str | os.PathLike, paths: Iterable[str | os.PathLike]) -> list[str]:
    """Return paths relative to a folder, with forward slashes."""
    return [Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths]


def split_images(
    names: Sequence[str], paths: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images at random into training and validation images.

    The split depends on the set of names and on the seed, and not on the order of the list. All
    entries of one file are on the same side, also links to it. At least one file is on each side.

    Args:
        names: name of each image, which does not depend on the place of the data.
        paths: path of each image's file.
        share: share of the files to validate on, between 0 and 1.
        seed: seed of the random choice.

    Returns:
        The positions in ``names`` of the training images and of the validation images, ascending.

    Raises:
        UserError: the share is not between 0 and 1, or there are fewer than two files.
    """
    if not 0 < share < 1:
        raise UserError(f"validation split {share}: expected a share between 0 and 1, such as 0.1")
    own = [os.path.realpath(path) for path in paths]
    first: dict[str, str] = {}  # the first of the names of each file
    for name, file in zip(names, own, strict=True):
        first[file] = min(name, first.get(file, name))
    files = sorted(first, key=lambda file: (first[file], file))
    if len(files) < 2:
        raise UserError(
            f"validation split {share} of {len(files)} image file{'s' * (len(files) != 1)}: "
            "expected at least two, one to train on and one to validate on; add images, or name "
            "validation data"
        )
    count = min(max(round(share * len(files)), 1), len(files) - 1)
    return _sides(own, set(random.Random(seed).sample(files, count)))


def restore_split(
    names: Sequence[str], paths: Sequence[str], chosen: Container[str]
) -> tuple[list[int], list[int]]:
    """Return the sides of an earlier split; ``chosen`` are the names of its validation images.

    Images that are new since then are trained on, unless they are links to a chosen image.
    """
    own = [os.path.realpath(path) for path in paths]
    return _sides(own, {file for name, file in zip(names, own, strict=True) if name in chosen})


def _sides(files: Sequence[str], chosen: Container[str]) -> tuple[list[int], list[int]]:
    sides: tuple[list[int], list[int]] = ([], [])
    for position, file in enumerate(files):
        sides[file in chosen].append(position)
    return sides


def shared_note(training: Iterable[str], validation: Iterable[str]) -> str | None:
    """Return a line if images, by their paths, are both in the training and validation data."""
    files = {os.path.realpath(path) for path in validation}
    count = len(files & {os.path.realpath(path) for path in training})
    if not count:
        return None
    return (
        f"warning: {count} of the {len(files)} validation images are also training images: the "
        "scores will be too high for new images"
    )


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
    paths = [image["path"] for image in data.images]
    sides = split_images(image_names(data), paths, share, seed)
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
