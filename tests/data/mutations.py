"""Seeded mutations of a good COCO file: a value dropped, retyped, nested, null, huge, negative …"""

import copy
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SEEDS = range(50)
WIDTH, HEIGHT = 64, 48
LEVELS = ("file", "image", "category", "annotation", "bbox", "segmentation", "polygon", "rle")


def good_file() -> dict:
    """Return the content of a file: two images of 64×48 with one 20×20 polygon each, and an RLE."""
    runs = [12 * 48, *[20, 28] * 19, 20]  # 20 columns of 20 pixels, from x = 12 and y = 0
    runs.append(64 * 48 - sum(runs))
    rle = {"size": [HEIGHT, WIDTH], "counts": runs}
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in (1, 2)]
    polygon = [8, 24, 28, 24, 28, 44, 8, 44]
    shared = {"iscrowd": 0, "area": 400}
    square = {**shared, "bbox": [8, 24, 20, 20], "segmentation": [polygon]}
    top = {**shared, "bbox": [12, 0, 20, 20], "segmentation": rle}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, **square},
        {"id": 2, "image_id": 2, "category_id": 7, **square},
        {"id": 3, "image_id": 2, "category_id": 3, **top},
    ]
    categories = [
        {"id": 3, "name": "red", "supercategory": "color"},
        {"id": 7, "name": "blue", "supercategory": "color"},
    ]
    data = {"images": images, "annotations": annotations, "categories": categories}
    return copy.deepcopy(data)  # no list is shared


def mutate(seed: int) -> tuple[dict, str]:
    """Return the content of a mutated file, and what was changed."""
    rng, data = random.Random(seed), good_file()
    changes = [_change(rng, data) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return data, f"seed {seed}: {'; '.join(changes)}"


def write_mutation(folder: Path, seed: int) -> tuple[Path, Path, str]:
    """Write the images and the mutated file; return the file, the image folder and the change."""
    data, text = mutate(seed)
    images, file = folder / "images", folder / "annotations.json"
    images.mkdir(parents=True, exist_ok=True)
    for n in (1, 2):
        noise = np.random.default_rng(n).integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        picture = Image.fromarray(noise)
        ImageDraw.Draw(picture).rectangle([8, 24, 27, 43], fill=(220, 40, 40))
        picture.save(images / f"{n}.png")
    file.write_text(json.dumps(data))
    return file, images, text


def _change(rng: random.Random, data: dict) -> str:
    level = rng.choice(LEVELS)
    holder = _choose(rng, data, level)
    if not holder:
        return f"{level}: nothing left"
    key = rng.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
    change = rng.choice(("drop", "retype", "nest", "null", "huge", "negative", "duplicate"))
    if change == "drop":
        del holder[key]
    elif change == "duplicate":
        _duplicate(rng, data, level, holder, key)
    else:
        holder[key] = _changed(rng, holder[key], change)
    return f"{level} {key!r} {change}"


def _choose(rng: random.Random, data: dict, level: str) -> dict | list | None:
    """Return the dict or list whose entry changes; None if earlier changes removed it."""
    if level == "file":
        return data
    name = {"image": "images", "category": "categories"}.get(level, "annotations")
    records = data.get(name)
    records = [r for r in records if isinstance(r, dict)] if isinstance(records, list) else []
    if level == "polygon":
        shapes = [r.get("segmentation") for r in records]
        found = [s[0] for s in shapes if isinstance(s, list) and s]
    elif level in ("bbox", "segmentation", "rle"):
        found = [r.get("bbox" if level == "bbox" else "segmentation") for r in records]
        if level == "rle":
            found = [f.get("counts") for f in found if isinstance(f, dict)]
    else:
        found = records
    found = [f for f in found if isinstance(f, dict | list) and f]
    return rng.choice(found) if found else None


def _changed(rng: random.Random, value, change: str):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if change == "nest":
        return rng.choice([[value], [[value]], {"value": value}])
    if change == "null":
        return None
    if change == "huge":
        huge = [10**9, 2**31, 2**63, 10**30, 1e308, 10**400, float("inf"), float("nan")]
        return rng.choice(huge) if number else rng.choice(["x" * 5000, *huge])
    if change == "negative":
        return -value if number and rng.random() < 0.7 else rng.choice([-1, -0.5, -1e6])
    others = ["", "abc", "7", True, False, 3.5, 0, [], {}, [1, 2, 3, 4], "é\\x", "\ud800", "nan"]
    same = [str(value), float(value)] * 4 if number else [str(value)]
    return copy.deepcopy(rng.choice(others + same))


def _duplicate(rng: random.Random, data: dict, level: str, holder, key) -> None:
    """Repeat an entry of a list, or the record that holds a key."""
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
        return
    name = {"file": key, "image": "images", "category": "categories"}.get(level, "annotations")
    records = data.get(name)
    if isinstance(records, list) and records:
        records.append(copy.deepcopy(rng.choice(records)))
