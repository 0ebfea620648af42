"""The command ``e3va check``: locations, output, exit statuses, and the next commands."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e3va import UserError
from e3va.cli.main import build_parser, main
from e3va.data.images import in_threads
from e3va.data.locations import NAMES, find_location
from e3va.data.next_steps import override

ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *arguments, status=0):
    assert main(["check", *map(str, arguments)]) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


@pytest.fixture
def spaced(drawn, tmp_path):
    """The drawn data at paths with a space and a quote."""
    folder = tmp_path / "my data's"
    drawn.images.parent.rename(folder)
    drawn.images, drawn.json = folder / "images", folder / "annotations.json"
    return drawn


def test_good_data_end_with_status_0_and_the_next_commands(capsys, spaced, tmp_path):
    output = tmp_path / "new" / "out"
    out, err = run(capsys, spaced.json, "--output", output)
    assert err == "" and "Problems: none" in out and "12 objects, 2 classes" in out
    assert Image.open(output / "sheet.png").width == 1600
    written = json.loads((output / "problems.json").read_text())
    assert written["problems"] == [] and written["objects"] == 12
    assert sorted(p.name for p in output.iterdir()) == ["problems.json", "sheet.png"]
    train, detectron2 = (shlex.split(line) for line in out.splitlines()[-2:])
    args = build_parser().parse_args(train[1:])
    assert (args.images, args.annotations) == (str(spaced.images), str(spaced.json))
    values = dict(text.split("=", 1) for text in detectron2 if "=" in text)
    assert values["data.train.json"] == repr(str(spaced.json))
    config = detectron2[detectron2.index("--config-file") + 1]
    assert (ROOT / "configs" / config).is_file() and (ROOT / detectron2[1]).is_file()


def test_problems_end_with_status_1_and_one_line(capsys, drawn, tmp_path):
    for annotation in drawn.data["annotations"][:8]:
        annotation["bbox"] = [500, 500, 5, 5]
    drawn.save()
    out, err = run(capsys, drawn.json, "--output", tmp_path / "out", status=1)
    assert "  8 dropped: " in out
    assert f"    {drawn.images / '1.png'}, id 1: " in out and "… and 5 more" in out
    assert (
        err.count("\n") == 1
        and err.startswith("error: ")
        and "8 dropped, 4 skipped; first: " in err
    )
    assert "Next" in out  # training would still run
    written = json.loads((tmp_path / "out" / "problems.json").read_text())
    dropped = [p for p in written["problems"] if p["severity"] == "dropped"]
    assert [p["id"] for p in dropped] == list(range(1, 9))
    assert written["counts"] == {"no_area": 8, "empty": 4}  # four images have no other object
    (drawn.images / "6.png").unlink()
    out, err = run(capsys, drawn.json, status=1)
    assert err.startswith("error: ") and "1 refused, 8 dropped, 4 skipped; first: " in err
    assert "Next" not in out


def test_conversions_and_warnings_end_with_status_0(capsys, drawn):
    drawn.data["annotations"][0]["area"] = 0
    drawn.data["annotations"][1]["id"] = 1
    drawn.save()
    out, err = run(capsys, drawn.json)
    assert err == "" and "1 warning: " in out and "1 converted: " in out
    assert "id 1: the area is 0" in out and "Next" in out


def test_label_maps_with_names(capsys, tmp_path):
    for name in ("photos", "photos_sem_seg"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "photos" / "a.jpg")
    Image.fromarray(np.eye(10, 20, dtype=np.uint8)).save(tmp_path / "photos_sem_seg" / "a.png")
    labels = tmp_path / "photos_sem_seg"
    out, _ = run(capsys, labels, "--classes", "ground,tall tree", "--output", tmp_path / "out")
    assert f"images in {tmp_path / 'photos'}" in out  # found beside the maps
    train, detectron2 = (shlex.split(line) for line in out.splitlines()[-2:])
    args = build_parser().parse_args(train[1:])
    assert (args.images, args.labels) == (str(tmp_path / "photos"), str(labels))
    assert args.classes == "ground,tall tree"
    assert "data.classes=['ground', 'tall tree']" in detectron2
    assert (ROOT / "configs" / detectron2[detectron2.index("--config-file") + 1]).is_file()
    out, err = run(capsys, labels, "--classes", "ground", status=1)
    assert "has the labels 1: the classes are 0 to 0" in out
    out, err = run(capsys, labels, "--classes", "tree,sky,tree", status=1)
    assert out == "" and err.count("\n") == 1 and "--classes has tree twice" in err
    names = ",".join(map(str, range(256)))
    assert "--classes has 256 names" in run(capsys, labels, "--classes", names, status=1)[1]
    Image.new("RGB", (5, 5)).save(tmp_path / "photos" / "b.jpg")
    out, err = run(capsys, labels, "--sheet", "0", status=1)
    assert "images without a label map" in out


def test_wrong_usage_is_status_2(capsys, drawn):
    _, err = run(capsys, drawn.json, "--classes", "a,b", status=2)
    assert "--classes" in err
    for wrong in (["check"], [], ["check", "x", "--sheet", "-1"], ["check", "x", "--sheet", "y"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2


def test_unreadable_data_are_one_line(capsys, drawn, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("[1]")
    for arguments, message in (
        ([tmp_path / "gone"], tmp_path / "gone"),
        ([tmp_path / "empty"], tmp_path / "empty"),
        ([tmp_path / "text.json", "--images", tmp_path], "text.json holds a list"),
        ([drawn.images / "1.png"], "1.png is not a .json file"),
        ([drawn.json, "--images", tmp_path / "gone"], tmp_path / "gone"),
        ([drawn.json, "--output", drawn.json], f"{drawn.json} cannot be created (File exists)"),
    ):
        _, err = run(capsys, *arguments, status=1)
        assert str(message) in err and err.count("\n") == 1
    moved = tmp_path / "elsewhere" / "deep" / "drawn.json"
    moved.parent.mkdir(parents=True)
    drawn.json.rename(moved)
    _, err = run(capsys, moved, status=1)
    assert "looked for 1.png in" in err and "--images" in err
    run(capsys, moved, "--images", drawn.images)


def test_detectron2s_folder_conventions(capsys, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    _, err = run(capsys, "coco_2017_train", status=1)
    assert str(tmp_path / "sets/coco/annotations/instances_train2017.json") in err
    assert "DETECTRON2_DATASETS=" in err
    coco = tmp_path / "sets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    drawn.images.rename(coco / "train2017")
    drawn.json.rename(coco / "annotations" / "instances_train2017.json")
    out, _ = run(capsys, "coco_2017_train")
    assert "12 objects" in out and "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py" in out
    run(capsys, coco / "annotations" / "instances_train2017.json")  # finds ../train2017

    ade = tmp_path / "sets" / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (ade / kind / "training").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(ade / "images" / "training" / "a.jpg")
    Image.fromarray(np.full((8, 8), 150, np.uint8)).save(ade / "annotations/training/a.png")
    for name in ("ade20k_sem_seg_train", "ade_challenge_2016_train"):
        out, _ = run(capsys, name)
        assert "1 to 150" in out and "class 149" in out
        assert "ADE20K/semantic_fpn_e3va_swin_t_160k.py" in out
    _, err = run(capsys, "ade20k_sem_seg_val", status=1)
    assert "annotations_detectron2/validation" in err

    voc = tmp_path / "sets" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (voc / folder).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(voc / "JPEGImages" / "a.jpg")
    (voc / "ImageSets/Main/trainval.txt").write_text("a\n")
    (voc / "Annotations" / "a.xml").write_text(
        "<annotation><size><width>40</width><height>30</height></size><object><name>cat</name>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        "</annotation>"
    )
    out, _ = run(capsys, "voc_2007_trainval")
    assert "VOC/retinanet_e3va_swin_t.py" in out
    out, _ = run(capsys, voc, "--output", tmp_path / "out")
    written = tmp_path / "out" / "annotations.json"
    assert "custom/retinanet_e3va_swin_t.py" in out and str(written) in out
    run(capsys, written, "--images", voc / "JPEGImages")
    for config in ("VOC", "custom"):
        assert (ROOT / "configs" / config / "retinanet_e3va_swin_t.py").is_file()


def test_yolo_has_two_splits(capsys, tmp_path):
    (tmp_path / "data.yaml").write_text(
        "names: [red, blue]\ntrain: train/images\nval: val/images\n"
    )
    for split, lines in (("train", "0 .5 .5 .25 .5\n1 .5 .5 .5 .5\n"), ("val", "0 .5 .5 1 1\n")):
        for folder in ("images", "labels"):
            (tmp_path / split / folder).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "labels" / "a.txt").write_text(lines)
    out, err = run(capsys, tmp_path, "--output", tmp_path / "out")
    assert err == "" and "2 objects, 2 classes" in out and "1 object, 2 classes" in out
    for folder, boxes in (("", [[24, 12, 16, 24], [16, 12, 32, 24]]), ("val", [[0, 0, 64, 48]])):
        written = json.loads((tmp_path / "out" / folder / "annotations.json").read_text())
        assert [annotation["bbox"] for annotation in written["annotations"]] == boxes
    train, detectron2 = (shlex.split(line) for line in out.splitlines()[-2:])
    args = build_parser().parse_args(train[1:])
    assert "--images" not in train and args.annotations == str(tmp_path / "data.yaml")
    assert f"data.train.json={tmp_path / 'data.yaml'}" in detectron2
    (tmp_path / "val/labels/a.txt").write_text("5 .5 .5 1 1\n")
    out, err = run(capsys, tmp_path, status=1)  # a mistake in the validation data counts too
    assert "a.jpg" in err and "5" in err and "Next" not in out
    run(capsys, tmp_path, "--classes", "red,blue", status=2)


def test_labelme_masks_are_drawn_and_written(capsys, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    points = [[10, 5], [30, 5], [30, 25]]
    shape = {"label": "cat", "shape_type": "polygon", "points": points}
    content = {"shapes": [shape], "imagePath": "a.jpg", "imageWidth": 64, "imageHeight": 48}
    (tmp_path / "a.json").write_text(json.dumps(content))
    out, err = run(capsys, tmp_path, "--output", tmp_path / "out")
    assert err == "" and "masks and boxes" in out and (tmp_path / "out" / "sheet.png").is_file()
    train = shlex.split(out.splitlines()[-2])
    assert build_parser().parse_args(train[1:]).annotations == str(tmp_path)
    _, err = run(capsys, tmp_path / "a.json", status=1)
    assert f"name its folder, {tmp_path}" in err
    run(capsys, tmp_path / "out" / "annotations.json", "--images", tmp_path)


@pytest.mark.skipif(not importlib.util.find_spec("detectron2"), reason="needs Detectron2")
@pytest.mark.slow
def test_names_and_locations_are_detectron2s(tmp_path):
    """Detectron2 reads the variable when it is imported, so the script is a new process."""
    script = (
        "from detectron2.data import MetadataCatalog as M\n"
        "for n in M.list():\n"
        "    m = M.get(n).as_dict()\n"
        "    print(n, m.get('json_file') or m.get('sem_seg_root') or m.get('dirname'),"
        " m.get('image_root') or m.get('dirname'), sep='\\t')\n"
    )
    environment = {"DETECTRON2_DATASETS": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    rows = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    known = [name for name in NAMES if not name.startswith("ade_challenge")]
    assert known and set(known) <= rows.keys(), done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        for name in known:
            annotations, images = map(Path, rows[name].split("\t"))
            for path in (annotations, images):
                folder = path.parent if path.suffix == ".json" else path
                folder.mkdir(parents=True, exist_ok=True)
            if name.startswith("voc"):
                (images / "Annotations").mkdir(exist_ok=True)
                (images / "JPEGImages").mkdir(exist_ok=True)
                images = images / "JPEGImages"
            elif annotations.suffix == ".json":
                annotations.touch()
            place = find_location(name, None)
            assert (place.path, place.images) == (annotations, images)


@pytest.mark.skipif(not importlib.util.find_spec("detectron2"), reason="needs Detectron2")
@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.sampled_from(["true", "null", "1e5", "~/a", "a: b", "01", "./x"])))
def test_overrides_are_read_as_the_text_itself(text):
    from e3va.detectron2.config import parse_value

    if "\0" in text:
        return  # in no path
    (word,) = shlex.split(override("data.train.json", text))
    key, _, value = word.partition("=")
    assert key == "data.train.json" and parse_value(value) == text


def test_plain_paths_are_not_quoted():
    for path in ("/data/train.json", "train.json", "photos", "../a/b-c_d"):
        assert override("k", path) == f"k={path}"


def test_work_in_threads_keeps_its_order_and_stops_at_ctrl_c():
    assert list(in_threads(lambda x: x * x, range(500), "x")) == [x * x for x in range(500)]
    done = []

    def work(x):
        if x == 20:
            raise KeyboardInterrupt
        done.append(x)
        return x

    results = []
    with pytest.raises(KeyboardInterrupt):
        for result in in_threads(work, range(100_000), "x"):
            results.append(result)
    assert results == list(range(20)) and len(done) < 1000


def test_equal_folders_are_refused(capsys, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="gone"):
        find_location(str(tmp_path), str(tmp_path / "gone"))
    _, err = run(capsys, tmp_path, "--images", tmp_path, status=1)
    assert f"both in {tmp_path}" in err


def test_the_options_of_a_training_are_those_of_the_check(drawn, capsys):
    for annotation in drawn.data["annotations"]:
        annotation["iscrowd"] = 1
    drawn.save()
    (drawn.images / "1.png").unlink()
    path = [str(drawn.json), "--images", str(drawn.images)]
    assert main(["check", *path]) == 1
    assert "Next" not in capsys.readouterr().out
    assert main(["check", *path, "--skip-missing", "--use-crowds"]) == 0
    out = capsys.readouterr().out
    assert "10 objects" in out and "5 usable images" in out
    e3va, detectron2 = out.partition("Next")[2].strip().splitlines()
    assert e3va.endswith("--skip-missing --use-crowds")
    assert "data.skip_missing=true data.use_crowds=true" in detectron2
