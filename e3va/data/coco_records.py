"""Records of categories and images in COCO-format files, in the forms that tools write."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from .coco_values import as_key, as_name, as_whole, show

# A function that takes note of a problem: its kind, file, id and text, see Problems.note.
Note = Callable[[str, Any, Any, str], None]

# Limits of an image's record: pycocotools counts pixels, and follows polygons, in 32 bits.
LARGEST_SIDE, MOST_PIXELS = 10**6, 2**31


@dataclass(frozen=True)
class ReadOptions:
    """What to read, and what to leave out.

    Attributes:
        masks: whether every object needs a mask; False reads boxes only, and None reads masks if at
            least one object has a mask.
        training: whether the data are for training, which leaves out images without objects.
        keep_empty: whether training keeps images without objects.
        skip_missing: whether to leave out images that do not exist, instead of refusing them.
        use_crowds: whether objects with ``iscrowd`` 1 count as ordinary objects.
        classes: class names of the model that the data are for; () if it has none yet. A category
            with one of these names stays a class even if it looks like an unused parent.
    """

    masks: bool | None = True
    training: bool = False
    keep_empty: bool = False
    skip_missing: bool = False
    use_crowds: bool = False
    classes: tuple[str, ...] = ()


READ_ALL = ReadOptions()


@dataclass
class Images:
    """The usable image records of a file."""

    # Records by the id in the file: {id, file_name, width, height, path}, where ``id`` is a whole
    # number; it differs from the id in the file if that is another text.
    by_key: dict[int | str, dict] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)  # ids of images whose file does not exist
    numbered: bool = False  # whether the images are numbered, since their ids are other texts

    @property
    def present(self) -> list[dict]:
        """Records of the images that exist, in the file's order."""
        return [image for image in self.by_key.values() if image["id"] not in self.missing]

    def find(self, key: Any) -> dict | None:
        """Return the record for an annotation's ``image_id``, or None if it is not listed."""
        return self.by_key.get(as_key(key))


def list_records(data: Mapping[str, Any], key: str, source: str | os.PathLike) -> list[dict]:
    """Return the records under ``key`` of an annotation file; raise UserError if it has none."""
    records = data.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        problem = "has no" if key not in data else "has a malformed"
        raise UserError(
            f"{source} {problem} {key!r}: expected COCO format, a list of records in each of "
            "images, annotations and categories"
        )
    return records


def list_categories(
    data: Mapping[str, Any],
    source: str | os.PathLike,
    note: Note,
    classes: Sequence[str] = (),
) -> list[dict]:
    """Return the usable categories as {id, name}, sorted by id; note the problems of the others.

    The names are different. Categories that are only the ``supercategory`` of others are left out,
    except those that the ``classes`` of a model name.
    """
    usable: dict[int, dict] = {}
    records = list_records(data, "categories", source)
    if not records:
        note("category", source, None, "'categories' is empty: expected a record for each class")
    for record in records:
        identity, name = as_whole(record.get("id")), as_name(record.get("name"))
        if identity is None or name is None:
            text = f"category {show(record)} needs an integer 'id' and a 'name'"
            note("category", source, record.get("id"), text)
        elif identity in usable:
            text = f"category id {identity} is both {usable[identity]['name']!r} and {name!r}"
            note("category_twice", source, identity, text)
        else:
            usable[identity] = {"id": identity, "name": name, "record": record}
    usable = {identity: usable[identity] for identity in sorted(usable)}
    for identity in _find_parents(usable, data.get("annotations"), classes):
        text = (
            f"{usable[identity]['name']!r} is the supercategory of other classes, without objects"
        )
        note("parent", source, identity, text)
        del usable[identity]
    for identity, category in usable.items():
        _note_conversions(category.pop("record"), source, identity, note)
    _make_names_unique(usable, source, note)
    return list(usable.values())


def _note_conversions(record: dict, source: str | os.PathLike, identity: int, note: Note) -> None:
    if type(record["id"]) is not int:
        note("number", source, identity, f"the id of the category is {show(record['id'])}")
    if record["name"] != as_name(record["name"]):
        note("category_name", source, identity, f"the name is {show(record['name'])}")


def _find_parents(
    categories: Mapping[int, dict], annotations: Any, classes: Sequence[str]
) -> list[int]:
    """Return the ids of categories that only group others, as some tools export them."""
    annotations = annotations if isinstance(annotations, list) else []
    used = {as_whole(a.get("category_id")) for a in annotations if isinstance(a, dict)}
    below: dict[str | None, set[int]] = {}
    for identity, category in categories.items():
        below.setdefault(as_name(category["record"].get("supercategory")), set()).add(identity)
    parents = [
        identity
        for identity, category in categories.items()
        if identity not in used and below.get(category["name"], set()) - {identity}
    ]
    names = {c["name"] for identity, c in categories.items() if identity not in parents}
    wanted = set(classes) - names
    parents = [identity for identity in parents if categories[identity]["name"] not in wanted]
    return parents if len(parents) < len(categories) else []


def _make_names_unique(
    categories: Mapping[int, dict], source: str | os.PathLike, note: Note
) -> None:
    bearers: dict[str, list[int]] = {}
    for identity, category in categories.items():
        bearers.setdefault(category["name"], []).append(identity)
    taken = set(bearers)
    for name, own in bearers.items():
        for identity in own if len(own) > 1 else ():
            new = name
            while identity != own[0] and new in taken:
                new = f"{new} ({identity})"
            taken.add(new)
            categories[identity]["name"] = new
            text = f"{len(own)} classes have the name {name!r}; here it is {new!r}"
            note("name_twice", source, identity, text)


def list_images(
    data: Mapping[str, Any],
    source: str | os.PathLike,
    root: Path,
    note: Note,
    skip_missing: bool = False,
) -> Images:
    """Return the usable image records; note the problems of the others, and of missing files."""
    names: dict[str, int] = {}
    records = list_records(data, "images", source)
    if not records:
        note("no_images", source, None, "'images' is empty: expected a record for each image")
    keys = [as_key(record.get("id")) for record in records]
    texts = [key for key in keys if isinstance(key, str)]
    images = Images(numbered=bool(texts))
    if texts:
        text = f"the images are numbered from 1, since an id is {show(texts[0])}"
        note("image_numbered", source, None, text)
    for number, (record, key) in enumerate(zip(records, keys, strict=True), 1):
        image = _read_image(record, key, source, note)
        if image is None:
            continue
        if known := images.by_key.get(key):
            _note_same_id(known, image, root, note)
            continue
        if images.numbered:
            image["id"] = number
        elif type(record["id"]) is not int:
            image["converted"].append(f"id {show(record['id'])}")
        _find_file(image, root, images, note)
        first = names.setdefault(os.path.normpath(image["file_name"]), image["id"])
        if first != image["id"]:
            note("file_twice", image["path"], image["id"], f"the image {first} has the same file")
        if converted := image.pop("converted"):
            note("number", image["path"], image["id"], ", ".join(converted))
        images.by_key[key] = image
    for image in images.by_key.values():
        if image["id"] in images.missing:
            kind = "absent" if skip_missing else "missing"
            note(kind, image["path"], image["id"], "the file does not exist")
    return images


def _read_image(
    record: dict, key: int | str | None, source: str | os.PathLike, note: Note
) -> dict | None:
    """Return a record with values of the right types, or note its problem and return None."""
    identity, name = record.get("id"), record.get("file_name")
    sides = {side: as_whole(record.get(side)) for side in ("height", "width")}
    is_named, called = isinstance(name, str) and name != "", show(name or identity)
    text = None
    if key is None:
        text = f"image {called} has the id {show(identity)}, expected a whole number"
    elif not is_named:
        text = f"image {show(identity)} has the file_name {show(name)}, expected the name of a file"
    for side, value in sides.items():
        if record.get(side) is None:
            text = text or f"image {called} has no {side!r} of type int"
        elif value is None or not 0 < value <= LARGEST_SIDE:
            given, limit = show(record[side]), f"a whole number from 1 to {LARGEST_SIDE}"
            text = text or f"image {called} has the {side} {given}, expected {limit}"
    if not text and sides["height"] * sides["width"] >= MOST_PIXELS:
        text = f"image {called} has {sides['width']}×{sides['height']} pixels, too many to read"
    if text:
        note("image_record", source, identity, text)
        return None
    converted = [f"{s} {show(record[s])}" for s in sides if type(record[s]) is not int]
    return {"id": key, "file_name": name, **sides, "converted": converted}


def _note_same_id(known: dict, image: dict, root: Path, note: Note) -> None:
    first, name, path = known["file_name"], image["file_name"], str(root / image["file_name"])
    same = first in (name, name.replace("\\", "/"))
    if same and all(known[side] == image[side] for side in ("width", "height")):
        note("image_again", path, known["id"], f"the record of {name!r} appears twice")
    else:
        text = f"image id {known['id']} appears twice, for {first!r} and {name!r}"
        note("image_twice", path, known["id"], text)


def _find_file(image: dict, root: Path, images: Images, note: Note) -> None:
    """Fill in the path of an image; each file is looked for once, since disks can be slow."""
    name = image["file_name"]
    image["path"] = str(root / name)
    exists = os.path.isfile(image["path"])
    if not exists and "\\" in name:
        image["file_name"] = name.replace("\\", "/")
        image["path"] = str(root / image["file_name"])
        exists = os.path.isfile(image["path"])
        note("backslash", image["path"], image["id"], f"the file_name is {show(name)}")
    if not exists:
        images.missing.add(image["id"])
