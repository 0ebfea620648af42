"""Two models that train together over one trunk: equal to two trainings, with half the passes."""

import json
import shutil

import pytest
import torch
from PIL import Image

from e3va.adapter_files.files import read_adapter
from e3va.cli.main import main
from e3va.swin.trunk import SwinTrunk
from e3va.torchvision.together import TogetherTrainer
from e3va.torchvision.trainer import Trainer

SHORT = ("--size", "48", "--steps", "3")


@pytest.fixture
def train(drawn, drawn_labels, pretrained, tmp_path):
    """Return a function that runs ``e3va train`` into a folder on objects, label maps or both."""
    data = {
        "--annotations": (drawn.json, drawn.json),
        "--labels": (drawn_labels, drawn_labels),
    }

    def train(folder: str, *options, kinds=tuple(data), status=0) -> None:
        words = ["train", "--output", tmp_path / folder, *options]
        if "--resume" not in options:
            words += ["--images", drawn.images, "--val-images", drawn.images, "--trunk", pretrained]
            words += SHORT
            for kind in kinds:
                given, validation = data[kind]
                words += [kind, given, f"--val-{kind[2:]}", validation]
        assert main([str(word) for word in words]) == status

    return train


def weights(folder) -> dict:
    return read_adapter(folder)[0]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "plain"),
        (),
        ("--memory", "lean", "--precision", "bf16", "--trunk-precision", "bf16"),
        ("--model", "fcos", "--adapter-kind", "smoa", "--memory", "plain"),
    ],
    ids=["plain", "standard", "lean bf16", "smoa, fcos"],
)
def test_the_weights_are_those_of_trainings_apart(options, train, tmp_path, monkeypatch):
    passes, run = [], SwinTrunk._stages
    monkeypatch.setattr(SwinTrunk, "_stages", lambda *args: passes.append(1) or run(*args))
    train("both", *options)
    together = len(passes)
    train("one", *options, kinds=("--annotations",))
    for_labels = tuple(o for o in options if o not in ("--model", "fcos"))  # which is for objects
    train("two", *for_labels, kinds=("--labels",))
    assert len(passes) - together == together + 3  # one more in each of the three steps
    for task, folder in (("instances", "one"), ("labels", "two")):
        assert equal(weights(tmp_path / "both" / task), weights(tmp_path / folder))
        about = [read_adapter(tmp_path / name)[1] for name in (f"both/{task}", folder)]
        assert about[0] == about[1]  # with the scores and the trunk


def test_each_task_has_its_results_and_both_predict_from_one_pass(train, drawn, tmp_path, capsys):
    train("both", "--eval-every", "2")
    for task, score in (("instances", "AP mask"), ("labels", "mIoU")):
        folder = tmp_path / "both" / task
        assert {"model.pth", "training.pth", "curves.png", "summary.json"} <= {
            path.name for path in folder.iterdir()
        }
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [m["step"] for m in map(json.loads, lines) if score in m] == [2, 3]
    command = capsys.readouterr().out.splitlines()
    command = next(line for line in command if line.startswith("  e3va predict"))
    words = command.replace("PHOTOS", str(drawn.images)).split()[1:]
    assert main([*words[:-1], str(tmp_path / "drawn")]) == 0
    assert "1 pass of the trunk for 2 adapters: instances, labels" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("saved", [{"instances": 2}, {"instances": 1, "labels": 2}])
def test_a_run_that_was_killed_between_two_checkpoints_ends_the_same(
    saved, train, tmp_path, monkeypatch
):
    train("whole")
    step = TogetherTrainer._run_step

    def stop(self, batch):
        step(self, batch)
        for name, last in saved.items():
            if self.step == last:
                self.trainers[name].save()
        if self.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(TogetherTrainer, "_run_step", stop)
    train("parts", status=130)
    monkeypatch.undo()
    train("parts", "--resume")
    for task in ("instances", "labels"):
        assert equal(weights(tmp_path / "whole" / task), weights(tmp_path / "parts" / task))


def test_only_images_with_both_are_trained_on(train, drawn, drawn_labels, tmp_path, capsys):
    (drawn_labels / "1.png").unlink()
    lonely = drawn.data["annotations"].pop()["image_id"]
    drawn.data["annotations"].pop()
    drawn.save()
    train("both", "--skip-missing")
    said = capsys.readouterr().out
    assert lonely == 6
    assert (
        "4 images to train both models on, without 1 other image of the objects and 1 other image "
        "of the label maps" in said
    )


def test_what_cannot_be_together_is_refused_in_one_line(
    train, drawn, drawn_labels, tmp_path, capsys
):
    def refused(*options):
        train("bad", *options, status=1)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        return lines[0]

    assert "expected a highway" in refused("--recipe", "full")
    assert "expected a highway" in refused(
        "--adapter-kind", "lora", "--highway", "placement=inside"
    )
    assert "expected the model for the objects" in refused("--model", "semantic_fpn")
    other = tmp_path / "other"
    other.mkdir()
    for path in drawn.images.iterdir():
        Image.open(path).save(other / f"x{path.name}")
        (drawn_labels / path.name).rename(drawn_labels / f"x{path.name}")
    words = ["train", "--output", tmp_path / "none", "--images", other, "--labels", drawn_labels]
    for record in drawn.data["images"]:
        record["file_name"] = str(drawn.images / record["file_name"])
    drawn.save()
    words += ["--annotations", drawn.json, *SHORT]
    assert main([str(word) for word in words]) == 1
    assert "none of the 6 images with objects has a label map" in capsys.readouterr().err


def test_a_part_is_not_continued_alone(train, tmp_path, capsys):
    train("both")
    train("both/labels", "--resume", status=1)
    error = capsys.readouterr().err
    assert f"--output {tmp_path / 'both'} --resume" in error and error.count("\n") == 1


def test_an_unreadable_image_leaves_both_checkpoints(train, drawn, tmp_path, capsys, monkeypatch):
    step = Trainer.after_step

    def spoil(self):
        step(self)
        for path in drawn.images.iterdir():
            path.write_bytes(b"no image")

    monkeypatch.setattr(Trainer, "after_step", spoil)
    train("both", status=1)
    assert capsys.readouterr().err.count("\n") == 1
    for task in ("instances", "labels"):
        saved = torch.load(tmp_path / "both" / task / "training.pth", weights_only=True)
        assert saved["step"] == 1


def test_what_is_continued_is_the_same_run(train, tmp_path, capsys):
    train("both")
    capsys.readouterr()

    def refused(folder, *options):
        train(folder, "--resume", *options, status=1)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "expected the --output folder" in refused(
        "none", *("--annotations", "a", "--labels", "b")
    )
    shutil.rmtree(tmp_path / "both" / "labels")
    assert "--classes a,b,c, but the run" in refused("both", "--classes", "a,b,c")
    train("both", kinds=("--annotations",), status=1)
    assert "holds the run in instances" in capsys.readouterr().err
    train("both", "--resume")
    assert "it has no checkpoint: it starts anew" in capsys.readouterr().out
    train("one", kinds=("--annotations",))
    train("one", status=1)
    assert "holds the run of one model" in capsys.readouterr().err


def test_both_are_saved_before_the_first_is_scored(train, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_evaluate", stop)
    train("both", status=130)
    for task in ("instances", "labels"):
        saved = torch.load(tmp_path / "both" / task / "training.pth", weights_only=True)
        assert saved["step"] == 3
