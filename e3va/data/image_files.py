"""Image files beside annotations that name them only roughly, or give no size."""

from pathlib import Path

from ..utils.errors import UserError
from ..utils.paths import IMAGE_SUFFIXES
from .images import Size, image_size


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
