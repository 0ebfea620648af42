"""Which image files a user means, and where the project's config files are."""

import glob
from collections.abc import Iterable
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).parent.parent
# In an installed package the config files lie inside it, in a source checkout beside it.
CONFIG_ROOT = next(
    (root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()),
    _PACKAGE / "configs",
)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(inputs: Iterable[str]) -> list[Path]:
    """The image files that paths, folders (not their subfolders) and globs name, in their order.

    Raises:
        UserError: one of them names no image.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry).expanduser()
        if path.is_dir():
            images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            images = [path]
        else:
            images = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not images:
            raise UserError(
                f"{entry!r} names no image: expected an image file, a folder with images "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a glob that matches some"
            )
        found.update(dict.fromkeys(images))
    return list(found)


def free_name(path: Path, suffix: str, taken: set[str]) -> str:
    """A file name for what is made of ``path``: its stem, with folder names in front where another
    image has that name too. Adds it to ``taken``."""
    name = f"{path.stem}{suffix}"
    while name in taken:
        path = path.parent
        name = f"{path.name or len(taken)}_{name}"
    taken.add(name)
    return name
