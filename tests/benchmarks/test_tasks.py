"""The tasks of the accuracy benchmark: their splits do not overlap, and targets are as drawn."""

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from e3va.torchvision.models import BOX_MODELS, MASK_MODELS
from e3va.utils.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SPLITS = ("train", "val", "test")
VOC_OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


@pytest.fixture(scope="module")
def accuracy():
    """The modules with the tasks by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("loaders", "nuclei", "tasks")
    yield Namespace(**{name: importlib.import_module(f"accuracy.{name}") for name in names})
    sys.path.remove(str(BENCHMARKS))


def names_of(data) -> list[str]:
    return [Path(record["path"]).stem for record in data.records]


def test_photographs_for_validation_are_not_trained_on(accuracy):
    train, val = (set(accuracy.loaders.split_photos(12, split)) for split in ("train", "val"))
    assert len(train) == 8 and len(val) == 4 and not train & val
    assert train | val == set(range(12))


def test_every_task_has_a_source_and_the_score_of_its_model(accuracy):
    scores = dict.fromkeys(BOX_MODELS, "AP box") | dict.fromkeys(MASK_MODELS, "AP mask")
    for task in accuracy.tasks.TASKS.values():
        assert task.metric == scores.get(task.model, "mIoU")
        assert task.source == "drawn" or task.source in accuracy.tasks.SOURCE_HELP
    fields = set(vars(accuracy.tasks.Sources(Path("drawn"))))
    assert fields == {"drawn", *accuracy.tasks.SOURCE_HELP}


def write_cells(folder: Path, counts=(5, 4, 3)) -> Path:
    """Write photographs of 40 × 30 pixels, each with a cell and a platelet."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    objects = VOC_OBJECT.format("RBC", 3, 5, 12, 25) + VOC_OBJECT.format("Platelets", 21, 1, 26, 6)
    for split, count in zip(SPLITS, counts, strict=True):
        names = [f"{split}{i}" for i in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            Image.new("RGB", (40, 30)).save(folder / f"JPEGImages/{name}.jpg")
            text = f"<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
            (folder / f"Annotations/{name}.xml").write_text(text)
    return folder


def test_cells_have_the_lists_of_their_folder(accuracy, monkeypatch, tmp_path):
    pytest.importorskip("supervision")
    sources = accuracy.tasks.Sources(tmp_path / "drawn", cells=write_cells(tmp_path / "cells"))
    task = accuracy.tasks.available(sources)["cells"]
    data = {split: task.load(sources, split) for split in SPLITS}
    assert names_of(data["train"]) == ["train0", "train2", "train4"]
    assert names_of(data["val"]) == ["val0", "val2"]
    assert names_of(data["test"]) == ["test0", "test1", "test2"]
    for part in data.values():
        assert part.classes == ("Platelets", "RBC") and not part.coco.masks
        target = part.read_target(part.records[0])
        found = dict(zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True))
        assert found == {2: [2, 4, 12, 25], 1: [20, 0, 26, 6]}  # VOC counts from 1
    monkeypatch.setattr(accuracy.loaders, "MOST_CELL_IMAGES", 2)
    assert names_of(task.load(sources, "train")) == ["train0", "train2"]


def write_mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)


def write_nuclei(folder: Path, count: int = 12, size: tuple[int, int] = (20, 16)) -> Path:
    """Write micrographs with two nuclei each, and one that is too large."""
    for number in range(count + 1):
        sides = size if number < count else (401, 402)
        image = folder / f"id{number:02d}"
        for name in ("images", "masks"):
            (image / name).mkdir(parents=True)
        Image.new("RGBA", sides).save(image / "images" / f"{image.name}.png")
        write_mask(image / "masks/a.png", sides, (2, 3, 8, 7))
        write_mask(image / "masks/b.png", sides, (10, number % 8, 15, 16))
    return folder


def test_nuclei_are_split_by_the_places_of_their_names(accuracy, monkeypatch, tmp_path):
    folder = write_nuclei(tmp_path / "nuclei")
    sources = accuracy.tasks.Sources(tmp_path / "out" / "drawn", nuclei=folder)
    task = accuracy.tasks.available(sources)["nuclei"]
    data = {split: task.load(sources, split) for split in SPLITS}
    assert names_of(data["test"]) == ["id00", "id01", "id10", "id11"]
    assert names_of(data["val"]) == ["id02"]
    assert names_of(data["train"]) == [f"id{number:02d}" for number in range(3, 10)]
    target = data["train"].read_target(data["train"].records[2])  # id05
    assert target["boxes"].tolist() == [[2, 3, 8, 7], [10, 5, 15, 16]]
    assert target["labels"].tolist() == [1, 1] and data["train"].classes == ("nucleus",)
    assert [a["area"] for a in data["train"].coco.annotations[6]] == [6 * 4, 5 * 11]
    monkeypatch.setattr(accuracy.nuclei, "MOST_IMAGES", 3)
    assert names_of(task.load(sources, "train")) == ["id03", "id04", "id05"]


def test_masks_are_read_once_and_again_after_a_change(accuracy, monkeypatch, tmp_path):
    folder, calls = write_nuclei(tmp_path / "nuclei"), []
    sources = accuracy.tasks.Sources(tmp_path / "out" / "drawn", nuclei=folder)
    load, read = accuracy.tasks.TASKS["nuclei"].load, accuracy.nuclei._read_masks
    monkeypatch.setattr(accuracy.nuclei, "_read_masks", lambda x: calls.append(1) or read(x))
    for split in SPLITS:
        load(sources, split)
    assert len(calls) == 1
    write_mask(folder / "id02/masks/a.png", (20, 16), (2, 3, 9, 9))
    data = load(sources, "val")
    assert len(calls) == 2
    assert data.read_target(data.records[0])["boxes"][0].tolist() == [2, 3, 9, 9]


def test_wrong_masks_are_a_mistake_and_leave_no_file(accuracy, tmp_path):
    folder = write_nuclei(tmp_path / "nuclei")
    sources = accuracy.tasks.Sources(tmp_path / "out" / "drawn", nuclei=folder)
    mask = folder / "id04/masks/b.png"
    write_mask(mask, (21, 16), (0, 0, 2, 2))
    with pytest.raises(UserError) as error:
        accuracy.tasks.TASKS["nuclei"].load(sources, "train")
    assert all(text in error.value.line for text in (str(mask), "21 × 16", "20 × 16"))
    mask.write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        accuracy.tasks.TASKS["nuclei"].load(sources, "train")
    assert str(mask) in error.value.line
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.tmp"))


def test_folders_of_another_layout_are_a_mistake(accuracy, tmp_path):
    def message(**given) -> str:
        with pytest.raises(UserError) as error:
            accuracy.tasks.available(accuracy.tasks.Sources(tmp_path / "drawn", **given))
        return error.value.line

    (tmp_path / "empty").mkdir()
    for name in accuracy.tasks.SOURCE_HELP:
        for folder in (tmp_path / "none", tmp_path / "empty"):
            assert f"--{name} {folder}" in message(**{name: folder})
    cells = write_cells(tmp_path / "cells")
    (cells / "ImageSets/Main/test.txt").unlink()  # the reader would read all images
    assert "ImageSets/Main/test.txt" in message(cells=cells)
    nuclei = write_nuclei(tmp_path / "nuclei", 2)
    (nuclei / "id01" / "masks").rename(tmp_path / "masks")
    assert "id01/masks" in message(nuclei=nuclei)
    (nuclei / "id01" / "images").rename(tmp_path / "images")
    (nuclei / "id01").rmdir()
    (nuclei / "id00/images/id00.png").rename(nuclei / "id00/images/other.png")
    with pytest.raises(UserError, match=r"id00\.png"):
        accuracy.tasks.TASKS["nuclei"].load(
            accuracy.tasks.Sources(tmp_path / "drawn", nuclei=nuclei), "test"
        )
