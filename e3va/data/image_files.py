"""Image files beside annotations that name them only roughly, or give no size."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from ..utils.errors import UserError
from ..utils.paths import IMAGE_SUFFIXES
from .images import Size, image_size


class Note(NamedTuple):
    """A problem of annotations that a reader of their format finds."""

    kind: str  # key of problems.KINDS
    place: Path
    text: str


class Found(NamedTuple):
    """Annotations of another format, as those of a COCO-format file."""

    content: dict[str, Any]  # content of the file
    root: Path  # folder that its file names are relative to
    notes: list[Note]


def walk(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, also linked ones, sorted.

    Hidden files and folders are left out. Links that lead back to a folder above are not followed.
    """
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        above = {os.path.realpath(place) for place in (parent, *Path(parent).parents)}
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(Path(parent, name)) not in above
        ]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def is_image(path: Path) -> bool:
    """Return whether a name is that of an image, and not hidden, as macOS's ``._a.jpg`` is."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def names_by_stem(folder: Path) -> dict[str, list[str]]:
    """Return the names of the images in a folder by their stem."""
    stems: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        if is_image(path):
            stems.setdefault(path.stem, []).append(path.name)
    return stems


def size_of(image: Path) -> Size:
    """Return the width and height of an image; 1 and 1 if it is missing or broken.

    The readers of COCO-format data find missing and broken images, whatever the format.
    """
    try:
        return image_size(image)
    except UserError:
        return (1, 1)
