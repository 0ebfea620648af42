"""The data of a training: training data, and validation data that are checked before the start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..data.coco import ReadOptions, nothing_to_score, objects_of_crowded
from ..data.formats import own_validation
from ..data.images import check_headers
from ..data.label_maps import class_names
from ..data.split import (
    divide_coco,
    image_names,
    names_below,
    restore_split,
    shared_note,
    split_images,
)
from ..utils.counts import counted
from ..utils.errors import UserError
from .data import Dataset, check_classes, from_coco, open_dataset
from .models import MASK_MODELS, MOST_DETECTIONS
from .options import DATA, READING


@dataclass(frozen=True)
class TrainingData:
    """Data of a training."""

    training: Dataset
    validation: Dataset | None = None
    chosen: list[str] | None = None  # names of the validation images that --val-split chose


def open_data(
    options: Mapping[str, Any],
    model: str | None,
    classes: tuple[str, ...] = (),
    chosen: list[str] | None = None,
) -> TrainingData:
    """Open the data of a training, and print a line about each part.

    Args:
        options: options of the training, see :data:`e3va.torchvision.options.DEFAULTS`.
        model: model that the data are for; None to read masks if the data have some.
        classes: class names of the model of an earlier run.
        chosen: names of the validation images that ``--val-split`` chose in an earlier run.

    Raises:
        UserError: the data have a mistake, do not fit the model, or differ in their classes.
    """
    share, annotations = options["val_split"], options["annotations"]
    if share and annotations and (own := own_validation(annotations)):
        raise UserError(
            f"--val-split {share} and the {own} split that {annotations} names: expected one of "
            "the two, a share of the training data or validation data of their own; leave one out"
        )
    reading = ReadOptions(
        masks=None if model is None else model in MASK_MODELS,
        training=not share,  # the validation images are chosen among all images
        **{name: options[name] for name in READING},
        classes=classes,
    )
    paths, names = [options[name] for name in DATA[:3]], class_names(options["classes"])
    opened = open_dataset(*paths, classes=names, options=reading, prefix="--")
    if share:
        data = _split(opened, options, reading, chosen)
        print(data.training.summary)
        count = counted(len(data.validation.records), "other image")
        print(f"validation: {count} (--val-split {share})")
    else:
        print(opened.summary)
        data = TrainingData(opened, _open_validation(options, opened, reading))
    if data.training.coco:  # the headers of images with label maps have been read
        parts = [part for part in (data.training, data.validation) if part]
        check_headers([record for part in parts for record in part.records])
    return data


def _open_validation(
    options: Mapping[str, Any], training: Dataset, reading: ReadOptions
) -> Dataset | None:
    """Open the validation data that are given, or the split that the annotations name."""
    paths, prefix, title = [options[name] for name in DATA[3:]], "--val-", "validation"
    annotations = options["annotations"]
    if not any(paths) and annotations and (own := own_validation(annotations)):
        paths, prefix = [options[name] for name in DATA[:3]], "--"
        title = f"validation, the {own} split of the same data"
    if not any(paths):
        print(
            "no validation data are given (--val-images … or --val-split 0.1): the model is not "
            "scored"
        )
        return None
    masks = training.coco.masks if training.coco else None
    reading = replace(reading, masks=masks, training=False, classes=training.classes)
    names = () if training.coco else training.classes
    validation = open_dataset(*paths, classes=names, options=reading, split="val", prefix=prefix)
    print(f"{title}: {validation.summary}")
    check_classes(validation, training.classes, "the training data have")
    if line := validation.coco and nothing_to_score(validation.coco):
        print(f"warning: {line}")
    sides = ([record["path"] for record in part.records] for part in (training, validation))
    if note := shared_note(*sides):
        print(note)
    return validation


def _split(
    opened: Dataset, options: Mapping[str, Any], reading: ReadOptions, chosen: list[str] | None
) -> TrainingData:
    """Split the data into training and validation data, by image."""
    paths = [record["path"] for record in opened.records]
    names = image_names(opened.coco) if opened.coco else names_below(options["images"], paths)
    if chosen is None:
        sides = split_images(names, paths, options["val_split"], options["seed"])
        chosen = sorted({names[position] for position in sides[1]})
    else:
        _check_chosen(names, chosen, options["skip_missing"])
        sides = restore_split(names, paths, set(chosen))
    if opened.coco:
        parts = divide_coco(opened.coco, sides, replace(reading, training=True))
        training, validation = map(from_coco, parts)
    else:
        train, val = ([opened.records[position] for position in side] for side in sides)
        summary = f"{opened.summary}; {len(val)} of the images are for validation"
        training = replace(opened, records=train, summary=summary)
        validation = replace(opened, records=val)
    return TrainingData(training, validation, chosen)


def _check_chosen(names: Sequence[str], chosen: list[str], skip_missing: bool) -> None:
    missing = set(chosen) - set(names)
    if missing and not skip_missing:
        raise UserError(
            f"{len(missing)} of the {len(chosen)} validation images of the run are not among the "
            f"data any more (first: {min(missing)}): restore them, or start a new run"
        )


def crowded_note(parts: Sequence[Dataset | None], cap: int) -> str | None:
    """Return a line if images have more objects than the ``cap`` of detections in an image."""
    data = [part.coco for part in parts if part and part.coco]
    crowded = [count for own in data for count in objects_of_crowded(own, cap)]
    if not crowded:
        return None
    return (
        f"{len(crowded)} images have more than {cap} objects (the largest number is "
        f"{max(crowded)}), but the model finds at most {cap} in an image: give "
        f"--max-detections {min(max(crowded), MOST_DETECTIONS)}"
    )
