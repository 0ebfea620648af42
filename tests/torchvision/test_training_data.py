"""The data of a training: the model that they need, the options of reading, and --val-split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e3va import UserError
from e3va.torchvision.options import DEFAULTS
from e3va.torchvision.start import SPLIT, start_training
from e3va.torchvision.training_data import crowded_note, open_data

TINY = {"trunk": "random", "preset": "swin_nano", "highway": {"rank": 4}, "size": 48, "steps": 1}


def given(drawn, **options):
    return {"images": str(drawn.images), "annotations": str(drawn.json), **options}


def opened(drawn, model=None, classes=(), chosen=None, **options):
    return open_data({**DEFAULTS, **given(drawn, **options)}, model, classes, chosen)


def validated(drawn, **options):
    own = {"val_images": str(drawn.images), "val_annotations": str(drawn.json)}
    return opened(drawn, **own, **options)


def start(options, folder, **settings):
    return start_training({**TINY, **options}, folder, torch.device("cpu"), **settings)


def remove_masks(drawn):
    for annotation in drawn.data["annotations"]:
        del annotation["segmentation"]
    drawn.save()


def names(dataset):
    return {Path(record["path"]).name for record in dataset.records}


@pytest.mark.parametrize(
    "data, model", [("masks", "mask_rcnn"), ("boxes", "faster_rcnn"), ("maps", "semantic_fpn")]
)
def test_the_default_model_follows_from_the_data(data, model, drawn, drawn_labels, tmp_path):
    options = given(drawn)
    if data == "boxes":
        remove_masks(drawn)
    elif data == "maps":
        options = {"images": str(drawn.images), "labels": str(drawn_labels)}
    trainer = start(options, tmp_path / "out")
    assert trainer.config.model == model and trainer.config.detections == 100


def test_models_of_boxes_leave_out_masks_and_models_of_masks_need_them(drawn):
    data = validated(drawn, model="retinanet")
    assert not data.training.coco.masks and not data.validation.coco.masks
    assert len(data.training.records) == len(data.validation.records) == 6
    remove_masks(drawn)
    assert not opened(drawn).training.coco.masks
    with pytest.raises(UserError, match=f"{drawn.json}.*faster_rcnn"):
        opened(drawn, "mask_rcnn")


@pytest.mark.slow
def test_boxes_start_from_an_adapter_of_a_mask_model(drawn, make_trained, tmp_path, capsys):
    make_trained("mask_rcnn", "fruit")
    remove_masks(drawn)
    options = given(drawn, adapter=str(tmp_path / "fruit"), size=48, steps=1)
    trainer = start_training(options, tmp_path / "out", torch.device("cpu"))
    assert trainer.config.model == "faster_rcnn"
    assert "its backbone part" in capsys.readouterr().out
    trainer.train()
    options |= {"adapter": str(tmp_path / "out")}  # this one's model is kept where masks exist
    trainer = start_training(options, tmp_path / "next", torch.device("cpu"))
    assert trainer.config.model == "faster_rcnn"
    assert "the whole adapter" in capsys.readouterr().out


def test_the_options_of_reading_hold_for_both_parts(drawn):
    first, second = drawn.data["annotations"][:2]  # both in 1.png
    first["iscrowd"] = second["iscrowd"] = 1
    del drawn.data["annotations"][2:4]  # those of 2.png
    drawn.save()
    (drawn.images / "6.png").unlink()
    with pytest.raises(UserError, match="1 of 6 images .*6.png"):
        validated(drawn)
    data = validated(drawn, skip_missing=True)
    assert names(data.training) == {"3.png", "4.png", "5.png"}
    assert names(data.validation) == {"1.png", "2.png", "3.png", "4.png", "5.png"}
    data = validated(drawn, skip_missing=True, use_crowds=True)
    assert names(data.training) == {"1.png", "3.png", "4.png", "5.png"}
    assert not any(a["iscrowd"] for a in data.validation.coco.annotations[1])
    data = validated(drawn, skip_missing=True, keep_empty=True)
    assert names(data.training) == names(data.validation)


def test_more_objects_than_the_cap_are_reported_once(drawn):
    assert crowded_note([opened(drawn).training], 100) is None
    first = drawn.data["annotations"][0]
    drawn.data["annotations"] = [{**first, "id": number} for number in range(240)]
    drawn.save()
    data = validated(drawn)
    note = crowded_note([data.training, data.validation], 100)
    assert "2 images" in note and " 100 " in note and "--max-detections 240" in note
    assert crowded_note([data.training, data.validation], 240) is None


@pytest.mark.parametrize("maps", [False, True])
def test_a_split_is_stored_with_the_run(maps, drawn, drawn_labels, tmp_path):
    options = given(drawn, val_split=0.34)
    if maps:
        options = {"images": str(drawn.images), "labels": str(drawn_labels), "val_split": 0.34}
    folder = tmp_path / "out"
    trainer = start(options, folder)
    stored = json.loads((folder / SPLIT).read_text())["validation"]
    assert len(stored) == 2 and names(trainer.dataset).isdisjoint(stored)
    assert len(trainer.dataset.records) == 4
    trainer.train()
    assert trainer.scores.values
    # New images are trained on, whatever a new choice would be.
    for number in (7, 8, 9):
        (drawn.images / f"{number}.png").write_bytes((drawn.images / "1.png").read_bytes())
        (drawn_labels / f"{number}.png").write_bytes((drawn_labels / "1.png").read_bytes())
        image, annotation = drawn.data["images"][0], drawn.data["annotations"][0]
        drawn.data["images"].append({**image, "id": number, "file_name": f"{number}.png"})
        drawn.data["annotations"].append({**annotation, "id": 90 + number, "image_id": number})
    drawn.save()
    resumed = start_training({}, folder, torch.device("cpu"), resume=True)
    assert names(resumed.dataset) == {f"{n}.png" for n in range(1, 10)} - set(stored)
    assert json.loads((folder / SPLIT).read_text())["validation"] == stored
    with pytest.raises(UserError, match=r"--val-split 0.5.*0.34"):
        start_training({"val_split": 0.5}, folder, torch.device("cpu"), resume=True)
    (drawn.images / stored[0]).unlink()
    (drawn_labels / stored[0]).unlink()
    drawn.data["images"] = [i for i in drawn.data["images"] if i["file_name"] != stored[0]]
    drawn.save()
    with pytest.raises(UserError, match=f"1 of the 2 .*{stored[0]}"):
        start_training({}, folder, torch.device("cpu"), resume=True)


def test_a_split_depends_on_the_seed_and_not_on_the_folder(drawn):
    chosen = {tuple(opened(drawn, val_split=0.34, seed=seed).chosen) for seed in range(8)}
    assert len(chosen) > 1
    one = opened(drawn, val_split=0.34)
    moved = drawn.images.rename(drawn.images.with_name("moved"))
    assert opened(drawn, val_split=0.34, images=str(moved)).chosen == one.chosen
    both = names(one.training) | names(one.validation)
    assert len(both) == 6 and len(one.validation.records) == 2


def test_a_split_and_validation_data_contradict(drawn, tmp_path):
    options = given(drawn, val_split=0.2, val_images=str(drawn.images))
    with pytest.raises(UserError, match=r"--val-split 0.2.*--val-images"):
        start(options, tmp_path)


def test_images_that_cannot_be_used_stop_before_the_training(drawn):
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(drawn.images / "3.png")
    with pytest.raises(UserError, match=r"1 of 6 images .*3.png is 90×80.* 96×80"):
        validated(drawn)
    (drawn.images / "2.png").write_text("no image")
    for options in ({}, {"val_split": 0.34}):
        with pytest.raises(UserError, match=r"2 of 6 images .*2.png"):
            opened(drawn, **options)


def test_validation_data_with_only_crowds_are_reported(drawn, tmp_path, capsys):
    for annotation in drawn.data["annotations"]:
        annotation["iscrowd"] = 1
    own = tmp_path / "val.json"
    own.write_text(json.dumps(drawn.data))
    options = {"val_images": str(drawn.images), "val_annotations": str(own)}
    opened(drawn, **options)
    printed = capsys.readouterr().out
    assert f"warning: the validation data {own}" in printed and "--use-crowds" in printed
    opened(drawn, **options, use_crowds=True)
    assert "no object" not in capsys.readouterr().out
    own.write_text(json.dumps({**drawn.data, "annotations": []}))
    opened(drawn, **options)
    printed = capsys.readouterr().out
    assert f"warning: the validation data {own}" in printed and "--use-crowds" not in printed


def test_validation_data_with_other_classes_are_named(drawn, tmp_path):
    own = tmp_path / "val.json"
    data = {**drawn.data, "categories": [{"id": 3, "name": "red"}], "annotations": []}
    own.write_text(json.dumps(data))
    with pytest.raises(UserError, match=f"^{own} has the classes red, .* red, blue") as caught:
        opened(drawn, val_images=str(drawn.images), val_annotations=str(own))
    assert "trained on" not in caught.value.line


def test_a_split_that_leaves_no_object_to_train_on_is_named(drawn):
    """The cause is the split, unless there is no object at all."""
    chosen = opened(drawn, val_split=0.8).chosen
    kept = [i["id"] for i in drawn.data["images"] if i["file_name"] == chosen[0]]
    objects = [a for a in drawn.data["annotations"] if a["image_id"] in kept]
    drawn.data["annotations"] = objects
    drawn.save()
    with pytest.raises(UserError, match="split leaves 1 of 6 images to train on.* smaller"):
        opened(drawn, val_split=0.8)
    for annotation in objects:
        annotation["iscrowd"] = 1
    drawn.save()
    with pytest.raises(UserError, match="iscrowd is 1 in all 2"):
        opened(drawn, val_split=0.8)


def test_the_val_split_of_a_yolo_file_validates(drawn, tmp_path, capsys):
    pytest.importorskip("supervision")
    for number in range(1, 7):
        part = "train" if number < 5 else "val"
        for folder in ("images", "labels"):
            (tmp_path / "yolo" / folder / part).mkdir(parents=True, exist_ok=True)
        (drawn.images / f"{number}.png").rename(tmp_path / f"yolo/images/{part}/{number}.png")
        (tmp_path / f"yolo/labels/{part}/{number}.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    file = tmp_path / "yolo" / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: [red]\n")
    options = {**DEFAULTS, "annotations": str(file)}
    data = open_data(options, None)
    assert names(data.training) == {"1.png", "2.png", "3.png", "4.png"}
    assert names(data.validation) == {"5.png", "6.png"} and not data.training.coco.masks
    assert "the val split" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"--val-split 0.25.* val .*{file}"):
        open_data({**options, "val_split": 0.25}, None)
    file.write_text("path: .\ntrain: images\nval: images/val\nnames: [red]\n")
    open_data(options, None)
    assert "warning: 2 of the 2 " in capsys.readouterr().out
    # A split goes on if the data get a further folder.
    file.write_text("path: .\ntrain: images/train\nnames: [red]\n")
    options["val_split"] = 0.25
    chosen = open_data(options, None).chosen
    file.write_text("path: .\ntrain: [images/train, images/val]\nnames: [red]\n")
    data = open_data(options, None, chosen=chosen)
    assert len(data.training.records) == 5
    assert [f"images/{r['file_name']}" for r in data.validation.records] == chosen
