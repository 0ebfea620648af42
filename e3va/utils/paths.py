"""Image files that a user names, and the folder of the project's config files."""

import glob
import os
from collections.abc import Iterable, Set
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).parent.parent
# The config files lie inside an installed package, and beside the package in a source checkout.
CONFIG_ROOT = next(
    (root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()),
    _PACKAGE / "configs",
)
# In lower case. A suffix that this Pillow does not read is listed too: its files are not skipped
# without a word, and reading one says what to install.
IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff"),
    ".webp",
}
LABEL_MAP_SUFFIXES = {".png"}


def list_files(folder: str | os.PathLike, suffixes: Set[str], hidden: bool = False) -> list[Path]:
    """Return the files of a folder with one of the suffixes, in upper or lower case, sorted.

    Files whose names begin with a dot are left out, as macOS writes ``._a.jpg`` beside ``a.jpg``;
    with ``hidden``, only these are returned.
    """
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in suffixes
            and entry.name.startswith(".") == hidden
            and entry.is_file()
        )


def find_images(inputs: Iterable[str]) -> list[Path]:
    """Return the image files that paths, folders (without their subfolders) and globs name.

    Files of a folder whose names begin with a dot are left out.
    """
    found: dict[Path, None] = {}
    for entry in inputs:
        path = Path(entry).expanduser()
        if path.is_dir():
            images = list_files(path, IMAGE_SUFFIXES)
        elif path.is_file():
            images = [path]
        else:
            images = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not images:
            raise UserError(
                f"{entry!r} names no image: expected an image file, a folder with images "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}; its subfolders are not searched), or a "
                "glob such as 'photos/**/*.jpg'"
            )
        found.update(dict.fromkeys(images))
    return list(found)


def check_tensorboard_folder(folder: str | os.PathLike, option: str) -> None:
    """Raise UserError if TensorBoard cannot write into a folder: its path is not UTF-8."""
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{option} {folder}: TensorBoard writes only into folders whose names are UTF-8; "
            "choose another folder"
        ) from None


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
