"""The split of a user's own data into training and validation images."""

import json
import os

import pytest
from detectron2.config import LazyConfig, instantiate

from e3va import UserError
from e3va.detectron2 import engine, load_config
from e3va.detectron2.data import DataOptions, coco_dicts
from e3va.detectron2.labels import label_dicts
from e3va.torchvision.options import DEFAULTS
from e3va.torchvision.training_data import open_data

from .own_files import CASCADE, LABELS, OwnData, names, nodes


def test_the_split_has_every_image_once_and_depends_on_the_seed(ten):
    found = {}
    for seed in (0, 0, 1, 2):
        options = DataOptions(val_split=0.3, seed=seed)
        sides = [names(coco_dicts(*ten.paths, training=t, options=options)) for t in (True, False)]
        assert [len(side) for side in sides] == [7, 3]
        assert sorted([*sides[0], *sides[1]]) == sorted(f"{n}.png" for n in range(1, 11))
        assert found.setdefault(seed, sides) == sides
    assert len({tuple(sides[1]) for sides in found.values()}) > 1


def test_the_split_is_stored_and_an_evaluation_has_the_same(ten, model_overrides, tmp_path):
    given = [*model_overrides, *ten.given("train"), "data.val_split=0.2"]
    cfg = engine.prepare(load_config(CASCADE, given))
    output = tmp_path / "output"
    stored = json.loads((output / "split.json").read_text())["validation"]
    train, val = (names(instantiate(node)) for node in nodes(cfg))
    assert sorted(val) == stored and len(val) == 2 and not {*train} & {*val} and len(train) == 8
    truth = instantiate(cfg.dataloader.evaluator)._coco_api
    assert sorted(image["file_name"] for image in truth.loadImgs(truth.getImgIds())) == stored

    LazyConfig.save(cfg, str(output / "config.yaml"))
    (output / "last_checkpoint").write_text("model_final.pth")
    again = engine.prepare(load_config(output / "config.yaml"), resume=True)
    assert names(instantiate(again.dataloader.test.dataset)) == val
    for changes in (["train.seed=1"], ["data.val_split=0.5"]):
        with pytest.raises(UserError, match=r"split\.json"):
            engine.prepare(load_config(output / "config.yaml", changes), resume=True)
    assert json.loads((output / "split.json").read_text())["validation"] == stored
    engine.prepare(load_config(output / "config.yaml", ["data.val_split=0.5"]))  # a new run
    assert len(json.loads((output / "split.json").read_text())["validation"]) == 5


def test_a_split_and_validation_data_contradict_one_another(ten, model_overrides, tmp_path):
    other = OwnData(tmp_path / "other", 1)
    given = [*model_overrides, *ten.given("train"), *other.given("val"), "data.val_split=0.2"]
    with pytest.raises(UserError, match=rf"data.val_split=0.2.*{other.json}"):
        engine.prepare(load_config(CASCADE, given))
    assert not (tmp_path / "output").exists()


def test_the_validation_data_of_a_data_yaml_are_found(own, monkeypatch):
    """Without a share; with one, there would be two sets of validation data."""
    monkeypatch.setattr("e3va.detectron2.own_data.own_validation", lambda path: True)
    given = ["data.train.json=/yolo/data.yaml"]
    cfg = load_config(CASCADE, given)
    engine.resolve_validation(cfg)
    assert (cfg.data.val.json, cfg.data.val.images) == ("/yolo/data.yaml", "")
    cfg = load_config(CASCADE, [*given, *own.given("val")])
    engine.resolve_validation(cfg)
    assert cfg.data.val.json == str(own.json)
    with pytest.raises(UserError, match=r"data.val_split=0.1.*/yolo/data.yaml"):
        engine.resolve_validation(load_config(CASCADE, [*given, "data.val_split=0.1"]))


@pytest.mark.parametrize("kind", ["coco", "yolo", "labels"])
def test_both_frameworks_choose_the_same_images(kind, drawn, drawn_labels, tmp_path):
    options = {**DEFAULTS, "images": str(drawn.images), "val_split": 0.34}
    if kind == "yolo":
        pytest.importorskip("supervision")
        for number in range(1, 7):
            folder = tmp_path / ("a" if number < 4 else "yolo/z")
            for name in ("images", "labels"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            (drawn.images / f"{number}.png").rename(folder / f"images/{number}.png")
            (folder / f"labels/{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
        options |= {"images": None, "annotations": str(tmp_path / "yolo/data.yaml")}
        (tmp_path / "yolo/data.yaml").write_text(
            "train: [z/images, ../a/images]\nnames: [red]\n", encoding="utf-8"
        )
    elif kind == "coco":  # sorted, the names have another order than the paths
        (drawn.images.parent / "more").mkdir()
        for image in drawn.data["images"][3:]:
            name = f"../more/{image['file_name']}"
            (drawn.images / image["file_name"]).rename(drawn.images / name)
            image["file_name"] = name
        drawn.save()
        options["annotations"] = str(drawn.json)
    else:
        options["labels"] = str(drawn_labels)
    for seed in range(6):
        validation = open_data({**options, "seed": seed}, None).validation
        own = DataOptions(val_split=0.34, seed=seed)
        if kind == "labels":
            settings = {"training": False, "classes": validation.classes, "options": own}
            found = label_dicts(options["images"], options["labels"], **settings)
        else:
            place = options["annotations"], options["images"] or ""
            found = coco_dicts(*place, training=False, masks=False, options=own)
        expected = [os.path.realpath(record["path"]) for record in validation.records]
        assert sorted(os.path.realpath(r["file_name"]) for r in found) == sorted(expected)
        assert len(expected) == 2


def test_images_that_train_and_validate_are_counted(ten, model_overrides, caplog):
    engine.prepare(load_config(CASCADE, [*model_overrides, *ten.given("train"), *ten.given("val")]))
    assert "10 of the 10 validation images" in caplog.text


def test_label_maps_are_split_too(drawn, drawn_labels, tmp_path):
    given = [f"data.train.images={drawn.images}", f"data.train.labels={drawn_labels}"]
    given += [f"train.output_dir={tmp_path / 'out'}", "train.device=cpu", "data.val_split=0.34"]
    cfg = engine.prepare(load_config(LABELS, given))
    train, val = (names(instantiate(node)) for node in nodes(cfg))
    assert (len(train), len(val)) == (4, 2) and not {*train} & {*val}
    assert json.loads((tmp_path / "out" / "split.json").read_text())["validation"] == sorted(val)
    evaluator = instantiate(cfg.dataloader.evaluator)
    assert len(evaluator.input_file_to_gt_file) == 2
