"""Image files that a user names, and the folder of the project's config files."""

import glob
from collections.abc import Iterable
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).parent.parent
# The config files lie inside an installed package, and beside the package in a source checkout.
CONFIG_ROOT = next(
    (root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()),
    _PACKAGE / "configs",
)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Return the image files that paths, folders (without their subfolders) and globs name."""
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
                f"({', '.join(sorted(IMAGE_SUFFIXES))}), or a glob that matches image files"
            )
        found.update(dict.fromkeys(images))
    return list(found)


def free_name(path: Path, suffix: str, taken: set[str]) -> str:
    """Return a file name for a file made from ``path``, and add it to ``taken``.

    The name is the stem of ``path``; names of its folders are put in front while the name is taken.
    """
    name = f"{path.stem}{suffix}"
    while name in taken:
        path = path.parent
        name = f"{path.name or len(taken)}_{name}"
    taken.add(name)
    return name
