"""Folders of YOLO and Pascal VOC."""

import pytest

from .format_files import VOC_SQUARE, YOLO_SQUARE, save, write, xml


@pytest.fixture
def yolo(tmp_path):
    """Two classes; a.jpg has a red square, b.jpg no label file, and val's c.jpg a blue one."""
    root = tmp_path / "yolo"
    write(root / "data.yaml", "names: [red, blue]\ntrain: images/train\nval: images/val\n")
    for name in ("train/a", "train/b", "val/c"):
        save(root / "images" / f"{name}.jpg")
    write(root / "labels/train/a.txt", f"0 {YOLO_SQUARE}\n")
    write(root / "labels/val/c.txt", f"1 {YOLO_SQUARE}\n")
    return root


@pytest.fixture
def voc(tmp_path):
    save(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", xml(VOC_SQUARE))
    return tmp_path
