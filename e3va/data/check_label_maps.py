"""Check label maps and their images as a whole, so that no problem hides another."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.counts import counted
from ..utils.errors import UserError
from ..utils.paths import find_images
from .contact_sheet import Picture
from .images import Size, check_image, in_threads
from .label_maps import (
    IGNORED,
    MOST_CLASSES,
    TWO_LABELS,
    LabelMapFault,
    check_folders,
    find_hidden,
    find_label_maps,
    read_labels,
    shift_labels,
)
from .problems import REFUSED, Findings, Problems


def _zeros() -> np.ndarray:
    return np.zeros(256, np.int64)


@dataclass
class LabelMapFindings(Findings):
    """Findings in label maps and their images."""

    names: list[str] = field(default_factory=list)  # by class index
    named: bool = False  # whether the user named the classes
    usable: list[Picture] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=_zeros)  # of each class, in maps that can be read
    images: np.ndarray = field(default_factory=_zeros)  # number of maps with each class

    def pictures(self) -> list[Picture]:
        """Return the usable label maps."""
        return self.usable

    def legend(self) -> list[tuple[str, str]]:
        """Return the name of each class and its share of the pixels."""
        shares = 100 * self.pixels / max(self.pixels.sum(), 1)
        return [(name, f"{share:.1f}%") for name, share in zip(self.names, shares, strict=False)]


def check_label_maps(
    folder: str | Path,
    images: str | Path | None,
    names: tuple[str, ...] = (),
    *,
    first: int = 0,
    classes: int | None = None,
    skip_missing: bool = False,
) -> LabelMapFindings:
    """Check label maps and decode their images; ``a.jpg`` has the label map ``a.png``.

    Without ``images``, only the label maps are checked. ``first`` is the label of class 0 in the
    files, and ``classes`` the number of classes where they have no names. With ``skip_missing``,
    images without a label map are skipped.
    """
    found = LabelMapFindings(str(folder), None if images is None else str(images))
    pairs = _pair(found, skip_missing)
    found.listed = len(pairs)
    limit = len(names) or classes or MOST_CLASSES
    results = in_threads(lambda pair: _check(*pair, first, limit), pairs, "checking label maps")
    for (image, labels), (size, counts, problems) in zip(pairs, results, strict=True):
        found.problems += problems
        if counts is None:
            continue
        found.pixels += counts
        found.images += counts > 0
        if not problems.of_severity(REFUSED):
            used = frozenset(np.flatnonzero(counts[:IGNORED]).tolist())
            caption = f"{Path(image or labels).name}: {counted(len(used), 'class', 'classes')}"
            found.usable.append(Picture(image, size, caption, used, labels=labels, first=first))
    found.named = bool(names)
    used = np.flatnonzero(found.pixels[:IGNORED])
    count = classes or used.max(initial=-1) + 1
    found.names = list(names) or [f"class {index}" for index in range(count)]
    if not used.size:
        found.problems.note("nothing", folder, None, "no pixel has a class")
    elif used.tolist() == [0]:
        _note_one_class(found, first)
    for label, name in enumerate(found.names):
        if not found.pixels[label]:
            found.problems.note("unused", folder, label, f"no pixel of the class {name!r}")
    return found


def _note_one_class(found: LabelMapFindings, first: int) -> None:
    """Note that no pixel has another class than the first one."""
    if found.pixels[IGNORED] and not first:
        found.problems = Problems(p for p in found.problems if p.kind != "two_labels_map")
        found.problems.note("two_labels", found.source, None, TWO_LABELS)
    else:
        found.problems.note("one_class", found.source, None, f"every label is {first}")


def _pair(found: LabelMapFindings, skip_missing: bool) -> list[tuple[str | None, str | None]]:
    """Return images with their label maps; one of the two may be missing."""
    note = found.problems.note
    if found.root is not None:
        check_folders(found.root, found.source)
    is_folder = Path(found.source).is_dir()
    listed = find_label_maps(found.source) if is_folder else {}
    maps = {stem: str(paths[0]) for stem, paths in listed.items()}
    if not maps:
        raise UserError(f"{found.source} has no label maps: expected PNG files")
    for first, *others in listed.values():
        for path in others:
            note("map_twice", path, None, f"{first.name} has the same name")
    for path in find_hidden(found.root, found.source):
        note("hidden", path, None, "the name begins with a dot")
    if found.root is None:
        return [(None, path) for path in maps.values()]
    images = defaultdict(list)
    for path in find_images([found.root]):
        images[path.stem].append(path)
    for paths in images.values():
        for path in paths[1:]:
            note("ambiguous", path, None, f"has the same label map as {paths[0].name}")
    for stem in sorted(maps.keys() - images.keys()):
        note("no_image", maps[stem], None, f"no image {stem}.* in {found.root}")
    for stem in sorted(images.keys() - maps.keys()):
        for path in images[stem]:
            note(
                "no_map_skipped" if skip_missing else "no_map",
                path,
                None,
                f"{Path(found.source) / stem}.png does not exist",
            )
    return [(str(path), maps.get(stem)) for stem, paths in images.items() for path in paths]


def _check(
    image: str | None, path: str | None, first: int, limit: int
) -> tuple[Size | None, np.ndarray | None, Problems]:
    """Return the upright size of an image, the pixels of each class in its map, and problems."""
    problems, counts, size, map_size = Problems(), None, None, None
    if path is not None:
        try:
            raw, mode = read_labels(path)
        except LabelMapFault as fault:
            problems.note(fault.kind, path, None, fault.text)
        else:
            if mode:
                text = f"Pillow's mode {mode}, with labels from {raw.min()} to {raw.max()}"
                problems.note("map_depth", path, None, text)
            labels = shift_labels(raw, first)
            map_size = size = labels.shape[::-1]
            counts = np.bincount(labels.ravel(), minlength=256)
            _check_classes(counts, path, first, limit, problems)
    if image is not None:
        size = check_image(image, problems, None, map_size, None if map_size is None else path)
    return size, counts, problems


def _check_classes(counts: np.ndarray, path: str, first: int, limit: int, problems: Problems):
    used = np.flatnonzero(counts[:IGNORED])
    if not used.size:
        problems.note("ignored", path, None, f"every pixel is {IGNORED}")
    if not first and used.tolist() == [0] and counts[IGNORED]:
        problems.note("two_labels_map", path, None, TWO_LABELS)
    outside = [str(label + first) for label in used[used >= limit]]
    if outside:
        shown = ", ".join(outside[:8]) + (f" … {outside[-1]}" if len(outside) > 8 else "")
        text = f"has the labels {shown}: the classes are {first} to {limit - 1 + first}"
        problems.note("label", path, None, text)
