"""Read COCO-format annotation files in every form that tools write, and refuse what is wrong.

Records of categories and images are read in :mod:`e3va.data.coco_records`, annotations in
:mod:`e3va.data.coco_annotations`. Training and ``e3va check`` read a file by the same functions.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_open
from ..utils.counts import counted
from ..utils.errors import UserError, brief
from .coco_annotations import list_annotations
from .coco_records import (
    READ_ALL,
    Images,
    Note,
    ReadOptions,
    list_categories,
    list_images,
    list_records,
)
from .coco_values import show
from .masks import has_mask
from .problems import KINDS, REFUSED, count_line

MASK_FAULTS = ("no_mask", "polygons", "empty_mask")  # kinds that drop objects with good boxes
BOX_MODELS_ADVICE = (
    "train a model that finds boxes (--model faster_rcnn, or custom/retinanet_e3va_swin_t.py with "
    "Detectron2), or draw the masks"
)

__all__ = ["READ_ALL", "CocoData", "ReadOptions", "read_coco", "read_content"]


@dataclass
class CocoData:
    """A checked annotation file, as training and scoring need it."""

    source: str  # path of the annotation file
    # Records {id, file_name, width, height, path}, sorted by id, a whole number.
    images: list[dict]
    # Records of each image id, see coco_annotations.list_annotations.
    annotations: dict[int, list[dict]]
    # Records {id, name}, sorted by id; the names are different. A class index is a position here.
    categories: list[dict]
    # Number of problems by kind (a key of problems.KINDS): left out, converted and warned of.
    notes: Counter = field(default_factory=Counter)
    masks: bool = True  # whether the objects have masks

    @property
    def class_names(self) -> list[str]:
        """Class names by class index."""
        return [category["name"] for category in self.categories]

    @cached_property
    def class_index(self) -> dict[int, int]:
        """Class index of each category id; ids need not be contiguous."""
        return {category["id"]: index for index, category in enumerate(self.categories)}

    def summary(self) -> str:
        """Return one line: numbers of images, objects and classes, and what was not used as is."""
        crowds = [bool(a["iscrowd"]) for own in self.annotations.values() for a in own]
        count = counted(len(crowds) - sum(crowds), "object")
        if any(crowds):
            count += f" and {counted(sum(crowds), 'crowd region')}"
        names = ", ".join(" ".join(name.split()) for name in self.class_names)
        return (
            f"{self.source}: {counted(len(self.images), 'image')}, {count}, "
            f"{counted(len(self.categories), 'class', 'classes')} ({names}){count_line(self.notes)}"
        )

    def write(self, path: str | os.PathLike) -> None:
        """Write the usable annotations as a COCO-format file, atomically."""
        images = [{k: v for k, v in image.items() if k != "path"} for image in self.images]
        annotations = [a for image in self.images for a in self.annotations[image["id"]]]
        data = {"images": images, "annotations": annotations, "categories": self.categories}
        with atomic_open(path, "w") as file:
            json.dump(data, file)


@dataclass
class Content:
    """Usable records of an annotation file; :class:`CocoData` lists the fields of a record."""

    categories: list[dict]
    images: Images
    # (id in the file, image record, annotation record) in the file's order
    annotations: list[tuple[Any, dict, dict]]
    masks: bool


def category_names(
    data: Mapping[str, Any], source: str | os.PathLike, classes: Sequence[str] = ()
) -> list[str]:
    """Return the class names that :func:`read_content` finds; images need not exist.

    Args:
        data: content of the file.
        source: path of the annotation file, for messages.
        classes: class names of the model that the data are for, see :class:`ReadOptions`.

    Raises:
        UserError: a category has no id or name, or there is none.
    """
    note = _note_for_reader(Counter(), source, source)
    return [category["name"] for category in list_categories(data, source, note, classes)]


def read_coco(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    options: ReadOptions = READ_ALL,
) -> CocoData:
    """Read and check an annotation file, see :func:`read_content`."""
    return read_content(load_json(json_file), json_file, image_root, options)


def read_content(
    data: Mapping[str, Any],
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    options: ReadOptions = READ_ALL,
) -> CocoData:
    """Read and check the content of an annotation file.

    What tools write in another form is converted. Annotations are left out if their image is not
    listed, if their box has no area inside the image, or if they have no usable mask in a file with
    masks. Missing ``iscrowd`` and ``area`` are filled in, and annotation ids are numbered from 1.
    ``CocoData.notes`` counts all of that.

    Args:
        data: content of the file.
        json_file: path of the annotation file, for messages.
        image_root: folder of the images; ``file_name`` entries are relative to it.
        options: what to read, and what to leave out.

    Raises:
        UserError: the file lacks one of its lists; an image file does not exist; a record is
            malformed; the file has no masks and needs them; training would have no object.
    """
    notes, root = Counter(), Path(image_root)
    note = _note_for_reader(notes, json_file, root)
    content = read_records(data, json_file, root, options, note)
    images = sorted(content.images.present, key=lambda image: image["id"])
    if notes["missing"] or not images:
        raise _missing_images(content.images, json_file, root)
    annotations: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for _, image, annotation in content.annotations:
        annotations[image["id"]].append(annotation)
    notes = +notes  # without zeros
    result = CocoData(str(json_file), images, annotations, content.categories, notes, content.masks)
    return without_empty(result, options) if options.training else result


def without_empty(data: CocoData, options: ReadOptions) -> CocoData:
    """Leave out the images without objects, unless the options keep them, and count them.

    Raises:
        UserError: the data have no object to train on.
    """
    crowds = sum(a["iscrowd"] for found in data.annotations.values() for a in found)
    if crowds == sum(map(len, data.annotations.values())):
        raise UserError(
            f"{data.source} has {nothing_to_train(crowds, data.notes)}{count_line(data.notes)}"
        )
    if options.keep_empty:
        return data
    images = [image for image in data.images if has_object(data.annotations[image["id"]])]
    annotations = {image["id"]: data.annotations[image["id"]] for image in images}
    notes = +(data.notes + Counter(empty=len(data.images) - len(images)))
    return replace(data, images=images, annotations=annotations, notes=notes)


def read_records(
    data: Mapping[str, Any],
    source: str | os.PathLike,
    root: Path,
    options: ReadOptions,
    note: Note,
) -> Content:
    """Return the usable records of an annotation file, and note every problem.

    Args:
        data: content of the file.
        source: path of the annotation file.
        root: folder of the images.
        options: what to read, and what to leave out.
        note: function that takes note of a problem.

    Raises:
        UserError: the file lacks one of its lists, or has no masks and ``options.masks`` is True.
    """
    categories = list_categories(data, source, note, options.classes)
    images = list_images(data, source, root, note, options.skip_missing)
    records = list_records(data, "annotations", source)
    found = not records or any(has_mask(record.get("segmentation")) for record in records)
    if options.masks and not found:
        raise UserError(
            f"{source} has boxes only: none of its {len(records)} annotations has a mask in "
            f"'segmentation', which the model learns; {BOX_MODELS_ADVICE}"
        )
    options = replace(options, masks=found if options.masks is None else options.masks)
    ids = {category["id"] for category in categories}
    annotations = list(list_annotations(records, source, images, ids, options, note))
    return Content(categories, images, annotations, options.masks)


def has_object(annotations: Sequence[dict]) -> bool:
    """Return whether an image has an object that is no crowd region."""
    return any(not annotation["iscrowd"] for annotation in annotations)


def nothing_to_train(crowds: int, notes: Mapping[str, int]) -> str:
    """Return why data without a usable object are refused.

    Args:
        crowds: number of crowd regions.
        notes: number of problems by kind.
    """
    if crowds:
        return (
            f"no usable annotation to train on, since iscrowd is 1 in all {crowds} of them: read "
            "crowd regions as objects with --use-crowds (data.use_crowds=true with Detectron2)"
        )
    if masks := sum(notes.get(kind, 0) for kind in MASK_FAULTS):
        return (
            f"no usable annotation to train on, since {masks} objects have no usable mask: "
            f"{BOX_MODELS_ADVICE}"
        )
    return (
        "no usable annotation to train on: expected at least one object with a box inside its image"
    )


def objects_of_crowded(data: CocoData, most: int) -> list[int]:
    """Return the number of objects of each image that has more than ``most``."""
    counts = (sum(not a["iscrowd"] for a in own) for own in data.annotations.values())
    return [count for count in counts if count > most]


def nothing_to_score(data: CocoData) -> str | None:
    """Return a line if validation data have no object, so that there will be no scores."""
    if any(map(has_object, data.annotations.values())):
        return None
    line = f"the validation data {data.source} have no object: the model will have no scores"
    if not any(data.annotations.values()):
        return line
    return (
        f"{line}; iscrowd is 1 in all annotations, and --use-crowds (data.use_crowds=true with "
        "Detectron2) reads crowd regions as objects"
    )


def _note_for_reader(counts: Counter, source: str | os.PathLike, root: str | os.PathLike) -> Note:
    """Return a function that counts problems, and raises UserError for what training refuses."""

    def note(kind: str, file: Any, identity: Any, text: str) -> None:
        counts[kind] += 1
        # Missing images are counted to the end: if all are missing, their folder is wrong.
        if KINDS[kind].severity != REFUSED or kind == "missing":
            return
        if kind in ("unknown_category", "box", "crowd", "mask"):
            name = "an annotation" if identity is None else f"annotation {show(identity)}"
            text = f"{name} of {os.path.relpath(file, root)}: {text}"
        raise UserError(f"{source}: {text}")

    return note


def _missing_images(images: Images, source: str | os.PathLike, root: Path) -> UserError:
    first = next(image for image in images.by_key.values() if image["id"] in images.missing)
    text = f"{len(images.missing)} of {len(images.by_key)} images in {source} do not exist"
    advice = f"check the folder of images, {root}"
    if images.present:
        advice += ", or leave them out with --skip-missing (data.skip_missing=true with Detectron2)"
    return UserError(f"{text} (first: {first['path']}): {advice}")


def load_json(json_file: str | os.PathLike) -> dict:
    """Read the JSON object in an annotation file; raise UserError if there is none."""
    if not os.path.isfile(json_file):
        raise UserError(f"no annotation file {json_file}: expected a COCO-format .json file")
    try:
        # From bytes, json finds the encoding by itself, with or without a byte-order mark.
        data = json.loads(Path(json_file).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_file} is not JSON ({brief(error)}): expected COCO format") from None
    if not isinstance(data, dict):
        raise UserError(
            f"{json_file} holds a {type(data).__name__}: expected COCO format, an object with "
            "images, annotations and categories"
        )
    return data
