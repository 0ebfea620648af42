"""The e3va command as users run it: its files, and one line for each mistake."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from e3va.adapter_files.files import read_adapter, read_config
from e3va.cli.main import build_parser, main
from e3va.highway.registry import adapter_kinds
from e3va.torchvision.loading import load_model
from e3va.torchvision.predict import draw_instances

TINY = ["--trunk", "random", "--preset", "swin_nano", "--highway", "rank=4"]
TINY += ["--size", "48", "--steps", "2"]


@pytest.fixture
def train_arguments(drawn, tmp_path):
    paths = ["--images", drawn.images, "--annotations", drawn.json]
    validation = ["--val-images", drawn.images, "--val-annotations", drawn.json]
    output = ["--output", tmp_path / "out"]
    return ["train", *map(str, [*paths, *validation, *output]), *TINY]


def fails(capsys, arguments, pattern):
    """Check that the command prints one line on stderr and returns 1."""
    assert main([str(a) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and error.startswith("error: "), error
    assert re.search(pattern, error), error


@pytest.mark.slow
def test_train_eval_predict_and_info_of_instances(train_arguments, drawn, tmp_path, capsys):
    assert main([*train_arguments, "--eval-every", "1", "--tensorboard"]) == 0
    out = capsys.readouterr().out
    assert "What trains:" in out and "keeps" in out and "AP mask" in out
    folder = tmp_path / "out"
    assert {"model.pth", "training.pth", "metrics.jsonl", "curves.png", "summary.json"} <= set(
        os.listdir(folder)
    )
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(folder))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics if "AP mask" in m] == [1, 2]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scores"] == {k: v for k, v in metrics[-1].items() if k != "step"}
    assert summary["steps"] == 2 and summary["kept_for_backward_bytes"] > 1e5
    assert summary["parameters"]["trunk"]["trained"] == 0 < summary["seconds_a_step"]

    model = folder / "model.pth"
    data = ["--images", str(drawn.images), "--annotations", str(drawn.json)]
    assert main(["eval", str(model), *data, "--output", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["scores"] == {k: v for k, v in metrics[-1].items() if k != "step"}
    capsys.readouterr()

    pictures = tmp_path / "pictures"
    arguments = [
        "predict",
        model,
        "--input",
        drawn.images,
        "--output",
        pictures,
        "--threshold",
        "0",
    ]
    assert main([str(a) for a in arguments]) == 0
    assert len(list(pictures.glob("*.png"))) == 6
    assert min(Image.open(pictures / "1.png").size) >= 480  # enlarged, so that labels can be read
    predictions = json.loads((pictures / "predictions.json").read_text())
    assert [i["file_name"] for i in predictions["images"]] == sorted(
        str(p) for p in drawn.images.iterdir()
    )
    assert {c["id"]: c["name"] for c in predictions["categories"]} == {3: "red", 7: "blue"}
    from pycocotools.coco import COCO

    coco = COCO(str(pictures / "predictions.json"))
    assert len(coco.anns) > 6 and all(0 <= a["score"] <= 1 for a in coco.anns.values())
    assert coco.annToMask(coco.anns[1]).shape == (80, 96)
    capsys.readouterr()

    assert main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    for part in ("mask_rcnn", "swin_nano", "rank 4", "red, blue", "6 images", "AP mask"):
        assert part in out, out
    assert f"{model.stat().st_size / 2**20:.1f} MiB" in out


def test_train_eval_and_predict_of_label_maps(drawn, drawn_labels, tmp_path, capsys):
    data = ["--images", str(drawn.images), "--labels", str(drawn_labels)]
    validation = ["--val-images", str(drawn.images), "--val-labels", str(drawn_labels)]
    output = ["--output", str(tmp_path / "out"), "--classes", "nothing, red, blue"]
    assert main(["train", *data, *validation, *output, *TINY]) == 0
    assert "mIoU" in capsys.readouterr().out
    model = str(tmp_path / "out" / "model.pth")
    assert main(["eval", model, *data]) == 0
    assert "nothing" in capsys.readouterr().out
    pictures = tmp_path / "pictures"
    assert (
        main(["predict", model, "--input", f"{drawn.images}/[12].png", "--output", str(pictures)])
        == 0
    )
    labels = np.asarray(Image.open(pictures / "labels" / "1.png"))
    assert labels.shape == (80, 96) and labels.max() <= 2
    assert (pictures / "2.png").exists() and not (pictures / "predictions.json").exists()
    fails(
        capsys, ["eval", model, "--images", drawn.images, "--annotations", drawn.json], "--labels"
    )


@pytest.mark.slow
def test_resume_of_a_finished_run_and_of_another(train_arguments, drawn, capsys):
    assert main(train_arguments) == 0
    capsys.readouterr()
    fails(capsys, train_arguments, "out already holds a run .*--resume")
    assert main([*train_arguments, "--resume"]) == 0
    assert "step 2 of 2" in capsys.readouterr().out
    fails(
        capsys,
        [*train_arguments, "--resume", "--lr", "0.5"],
        "--lr 0.5, but the run .* has the default",
    )
    folder = train_arguments[train_arguments.index("--output") + 1]
    assert main(["train", "--resume", "--output", folder]) == 0  # all else is in the checkpoint
    drawn.data["categories"][0]["name"] = "green"
    drawn.save()
    fails(capsys, ["train", "--resume", "--output", folder], "classes red, green, but the model")


@pytest.mark.parametrize("kind", adapter_kinds())
def test_every_adapter_kind_trains_and_its_files_are_read(kind, train_arguments, tmp_path):
    # With the package's trunk: an adapter file names its trunk.
    arguments = train_arguments[: train_arguments.index("--trunk")]
    assert main([*arguments, "--adapter-kind", kind, "--size", "48", "--steps", "1"]) == 0
    assert read_config(tmp_path / "out").backbone.highway.adapter == kind
    model, *_ = load_model(tmp_path / "out" / "model.pth")
    saved, _ = read_adapter(tmp_path / "out")
    for name, tensor in model.state_dict().items():
        assert name not in saved or torch.equal(tensor, saved[name]), name
    assert any(".highway." in name for name in saved)


def test_mistakes_of_training_give_one_line(train_arguments, drawn, drawn_labels, tmp_path, capsys):
    def instead(flag, value, arguments=train_arguments):
        arguments = list(arguments)
        arguments[arguments.index(flag) + 1] = str(value)
        return arguments

    sized = train_arguments[: train_arguments.index("--preset")]  # by the weights file

    text = tmp_path / "text.txt"
    text.write_text("hello")
    fails(capsys, ["train"], "no data: .*--annotations.*--images.*--labels")
    fails(capsys, instead("--images", tmp_path / "none"), "--images .*none: no such folder")
    fails(
        capsys, instead("--annotations", tmp_path / "none.json"), "no annotation file .*none.json"
    )
    fails(capsys, instead("--annotations", text), "text.txt .*COCO-format")
    fails(capsys, instead("--val-images", tmp_path), "6 of 6 images .*1.png")
    options = [*train_arguments, "--val-labels", drawn_labels]
    fails(capsys, options, "expected one of --val-annotations and --val-labels, got both")
    fails(capsys, ["train", "--images", drawn.images], "no data: .*--annotations.*--labels")
    fails(capsys, [*train_arguments, "--classes", "a,b"], "--classes is for label maps")
    maps = ["train", "--images", drawn.images, "--labels", drawn_labels, "--output", tmp_path / "o"]
    fails(capsys, [*maps, "--classes", "a, b,a"], "--classes .*a")
    (drawn_labels / "1.png").write_text("no image")  # the model is compared before data are read
    fails(capsys, [*maps, "--model", "mask_rcnn"], "--model mask_rcnn needs --annotations")
    fails(
        capsys, [*train_arguments, "--model", "semantic_fpn"], "works on label maps: give --labels"
    )
    fails(capsys, instead("--trunk", text, sized), "text.txt cannot be read as a checkpoint")
    fails(capsys, instead("--trunk", tmp_path / "none.pth", sized), "no weights file")
    fails(
        capsys, instead("--preset", "swin_xxl"), "no Swin preset 'swin_xxl': expected one of swin_t"
    )
    fails(capsys, instead("--output", text), "text.txt .*File exists")
    fails(capsys, [*train_arguments, "--device", "cuda:77"], "--device cuda:77: ")
    fails(capsys, [*train_arguments, "--device", "gpu"], "--device gpu: .*expected cpu, cuda")
    fails(capsys, [*train_arguments, "--resume"], "--resume: no .*training.pth")
    fails(
        capsys,
        [*train_arguments, "--recipe", "e3va", "--highway", "rank=8", "reduction=7"],
        "reduction 7.* 16",
    )
    fails(capsys, [*train_arguments, "--adapter-kind", "monna"], "'monna': .*mean 'mona'")
    kind = [*train_arguments, "--adapter-kind", "mona", "--highway"]
    fails(capsys, [*kind, "adapter=conv"], "adapter=conv: expected each setting once")
    fails(capsys, [*kind, "reduction=2"], "'mona' has no setting 'reduction'")
    other = json.loads(drawn.json.read_text())
    other["categories"][0]["name"] = "green"
    (tmp_path / "other.json").write_text(json.dumps(other))
    fails(capsys, instead("--val-annotations", tmp_path / "other.json"), "classes red, green, but")
    assert not (tmp_path / "out" / "model.pth").exists()
    (drawn.images / "3.png").write_bytes((drawn.images / "3.png").read_bytes()[:99])
    fails(capsys, [*train_arguments, "--batch-size", "6"], "3.png cannot be read")


def test_mistakes_of_the_other_commands_give_one_line(train_arguments, drawn, tmp_path, capsys):
    text = tmp_path / "text.pth"
    text.write_text("hello")
    fails(capsys, ["info", tmp_path / "none.pth"], "no weights file")
    fails(capsys, ["info", text], "cannot be read as a checkpoint")
    fails(capsys, ["predict", text, "--input", drawn.images], "cannot be read as a checkpoint")
    fails(capsys, ["predict", text, "--input", "nowhere/*.jpg"], "'nowhere/.*' names no image")
    weights = tmp_path / "weights.pth"
    torch.save({"layer.weight": torch.zeros(2)}, weights)
    fails(capsys, ["predict", weights, "--input", drawn.images], "not a model of e3va train")
    assert main(["info", str(weights)]) == 0
    assert "weights: 1 tensors" in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    fails(capsys, ["info", tmp_path / "cut.safetensors"], "cannot be read as safetensors")
    assert main(train_arguments) == 0
    capsys.readouterr()
    model = tmp_path / "out" / "model.pth"
    fails(capsys, ["eval", model], "no data: .*--annotations.*--labels")
    fails(
        capsys, ["eval", model, "--images", drawn.images, "--labels", drawn.images], "--annotations"
    )
    fails(capsys, ["eval", model, "--output", tmp_path], "--output .*is a folder")
    fails(capsys, ["eval", model, "--output", text / "x.json"], "text.pth")
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    arguments = [
        "predict",
        model,
        "--input",
        broken,
        drawn.images / "1.png",
        "--output",
        tmp_path / "p",
    ]
    fails(capsys, arguments, "image .*broken.jpg cannot be read")
    assert (tmp_path / "p" / "1.png").exists()  # the others are drawn
    arguments = ["predict", model, "--input", broken, "--output", tmp_path / "nothing"]
    fails(capsys, arguments, "image .*broken.jpg cannot be read")
    assert not (tmp_path / "nothing").exists()
    fails(capsys, ["info", model, "--trunk", text], "--trunk .*text.pth: .*model.pth is no adapter")
    os.truncate(model, 3000)
    fails(capsys, ["eval", model], "cannot be read as a checkpoint")


def test_masks_that_overlap_are_both_drawn():
    image, masks = torch.full((3, 480, 480), 0.5), torch.zeros(2, 480, 480)
    masks[0, 100:300, 100:300] = 1
    masks[1, 200:400, 200:400] = 1
    found = {
        "masks": masks[:, None],
        "boxes": torch.tensor([[100.0, 100, 300, 300], [200, 200, 400, 400]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.6]),
    }
    drawn = draw_instances(image, found, ("a", "b"))
    first, shared, second, none = (drawn[:, p, p] for p in (150, 250, 350, 450))
    assert torch.equal(shared, first) and not torch.equal(first, second)
    assert none.tolist() == [128] * 3 and not torch.equal(second, none)
    first_only = draw_instances(image, found, ("a", "b"), threshold=0.7)
    assert first_only[:, 350, 350].tolist() == [128] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train", "--steps", "0"],
        ["train", "--steps", "many"],
        ["train", "--lr", "-1"],
        ["train", "--model", "yolo"],
        ["train", "--val-split", "1"],
        ["train", "--max-detections", "0"],
        ["predict", "m.pth", "--input", "a", "--max-detections", "20000"],
        ["eval", "m.pth", "--keep-empty"],
        ["train", "--batch-size"],
        ["predict", "m.pth"],
        ["predict", "m.pth", "--input", "a", "--threshold", "2"],
        ["eval"],
    ],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error, advice = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert re.fullmatch(f"see e3va {' '.join(arguments[:1])} ?--help", advice) or "fly" in error


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["train", "--rank", "24"], "--rank 24; .*--highway rank=VALUE\nsee e3va train --help"),
        (["train", "--train-trunk"], "--highway train_trunk=VALUE\n"),
        (["train", "--method=e3va"], "--method=e3va; .*--recipe NAME\n"),
        (["predict", "m.pth", "--input", "a", "--rank", "4"], "--rank 4\nsee e3va predict --help"),
        (["zoo", "list", "--all"], "--all\nsee e3va zoo list --help"),
    ],
)
def test_unknown_options_name_the_command_and_what_replaces_them(arguments, values, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert re.search(values, capsys.readouterr().err)


def test_help_shows_defaults(capsys):
    parser = build_parser()
    for command in ("train", "eval", "predict", "info"):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([command, "--help"])
        assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "number of updates (default: 1000)" in out and "from 0 to 1 (default: 0.5)" in out


def test_help_imports_no_framework():
    code = "import sys; from e3va.cli.main import main\ntry: main(['--help'])\n"
    code += "except SystemExit: sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_info_of_the_demonstration_trunk(capsys):
    from e3va.model_zoo.trunks import DEMO_FILE

    assert main(["info", str(DEMO_FILE)]) == 0
    out = capsys.readouterr().out
    assert "holds the Swin swin_mini" in out and "trained_on" in out and "int8 matrices" in out


@pytest.mark.slow
def test_boxes_from_the_command_line(drawn, tmp_path, capsys):
    """Eval scores only boxes, and --max-detections replaces the model's cap."""
    masks = tmp_path / "masks.json"
    masks.write_text(drawn.json.read_text())
    for annotation in drawn.data["annotations"]:
        annotation.pop("segmentation")
        annotation["iscrowd"] = 1
    drawn.data["images"][0]["file_name"] = "none.png"
    drawn.save()
    data = ["--images", drawn.images, "--annotations", drawn.json]
    fails(capsys, ["train", *data, *TINY, "--use-crowds"], "none.png")
    reading = ["--use-crowds", "--skip-missing"]
    options = [*reading, "--keep-empty", "--val-split", "0.4", "--max-detections", "1"]
    start = ["train", *data, "--output", tmp_path / "out"]
    assert main([str(a) for a in [*start, *TINY, *options]]) == 0
    out = capsys.readouterr().out
    assert "faster_rcnn" in out and "--max-detections 2" in out and "AP box" in out
    assert "AP mask" not in out
    assert main([str(a) for a in [*start, "--resume", *options]]) == 0
    capsys.readouterr()
    fails(capsys, [*start, "--resume", "--max-detections", "3"], "--max-detections 3.* 1:")
    model = tmp_path / "out" / "model.pth"
    assert main([str(a) for a in ["eval", model, *data, *reading]]) == 0
    assert "--max-detections 2" in capsys.readouterr().out
    scores = tmp_path / "scores.json"
    arguments = ["eval", model, *data[:3], masks, "--max-detections", "2", "--output", scores]
    assert main([str(a) for a in arguments]) == 0
    assert "--max-detections" not in capsys.readouterr().out
    assert set(json.loads(scores.read_text())["scores"]) == {"AP box", "AP50 box", "AP75 box"}
    for given, most in (([], 1), (["--max-detections", "2"], 2)):
        arguments = ["predict", model, "--input", drawn.images / "2.png", "--threshold", "0"]
        arguments = [*arguments, "--output", tmp_path / f"most{most}", *given]
        assert main([str(a) for a in arguments]) == 0
        found = json.loads((tmp_path / f"most{most}" / "predictions.json").read_text())
        assert len(found["annotations"]) == most


def test_an_evaluation_without_any_object_writes_null(drawn, make_trained, tmp_path):
    make_trained("mask_rcnn", "fruit", classes=("red", "blue"))
    drawn.data["annotations"].clear()
    drawn.save()
    data = ["--images", drawn.images, "--annotations", drawn.json]
    arguments = ["eval", tmp_path / "fruit", *data, "--output", tmp_path / "scores.json"]
    assert main([str(a) for a in arguments]) == 0
    text = (tmp_path / "scores.json").read_text()
    assert set(json.loads(text, parse_constant=pytest.fail)["scores"].values()) == {None}
