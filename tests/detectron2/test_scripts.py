"""The project's scripts, run as a user runs them, and their messages for mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.engine import SimpleTrainer, default_argument_parser, hooks
from PIL import Image

from e3va import SwinTrunk
from e3va.detectron2 import engine, visualize
from e3va.detectron2.config import CONFIG_ROOT
from e3va.utils.atomic import save_atomically

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "E3VA"
CHECKOUT = Path(os.environ.get("DETECTRON2_CHECKOUT", Path.home() / ".cache/e3va/detectron2"))
CONFIG = "custom/cascade_mask_rcnn_e3va_swin_t.py"


def script(name, *arguments, folder=PROJECT, environment=()):
    command = [sys.executable, str(folder / name), *map(str, arguments)]
    env = {**os.environ, **dict(environment)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.slow
def test_train_resume_evaluate_and_draw_from_a_copied_project(small_overrides, drawn, tmp_path):
    """The project's folder, copied elsewhere as into a Detectron2 checkout."""
    folder = tmp_path / "projects" / "E3VA"
    shutil.copytree(PROJECT, folder)
    output = tmp_path / "output"
    train = ["lazyconfig_train_net.py", "--config-file", CONFIG]
    first = script(*train, *small_overrides, "train.max_iter=2", folder=folder)
    assert first.returncode == 0, first.stderr
    for text in ("What trains", "A step on 2 images keeps", "max_mem", "copypaste: Task: segm"):
        assert text in first.stdout + first.stderr
    run(small_overrides, "train.max_iter=3", flags=["--resume"], eval_period=3)
    iterations = [
        record["iteration"]
        for record in map(json.loads, (output / "metrics.json").read_text().splitlines())
        if "total_loss" in record
    ]
    assert sorted(set(iterations)) == [0, 1, 2]

    found = (output / "inference" / "coco_instances_results.json").read_bytes()
    (output / "inference" / "coco_instances_results.json").unlink()

    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    run(small_overrides, weights, flags=["--eval-only"])
    assert (output / "inference" / "coco_instances_results.json").read_bytes() == found

    (tmp_path / "broken.jpg").write_text("no image")
    drawn_run = script(
        "demo.py",
        *("--config-file", output / "config.yaml", "--weights", output / "model_final.pth"),
        *("--input", drawn.images, f"{drawn.images}/1*.png", tmp_path / "broken.jpg"),
        *("--output", tmp_path / "drawn_out", "--confidence-threshold", "0.01"),
        folder=folder,
    )
    assert drawn_run.returncode == 1  # one image could not be read; the others are drawn
    assert f"error: image {tmp_path / 'broken.jpg'} cannot be read" in drawn_run.stderr
    assert "6 of 7 images drawn" in drawn_run.stdout
    pictures = sorted((tmp_path / "drawn_out").iterdir())
    assert [p.name for p in pictures] == [f"{k}.png" for k in range(1, 7)]
    for picture in pictures:
        Image.open(picture).verify()


@pytest.mark.slow
def test_coco_config_trains_and_evaluates_on_coco_layout(small_overrides, drawn, tmp_path):
    """Drawn pictures in COCO's folders, with COCO's categories."""
    names = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(drawn.images, tmp_path / "coco" / f"{split}2017")
        path = tmp_path / "coco" / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps({"info": {}, **drawn.data, "categories": names}))
    own = [o for o in small_overrides if not o.startswith("data.")]
    small = [
        f"{a}.short_edge_length={b}"
        for a, b in (
            ("dataloader.train.mapper.augmentations.0", "[64,80]"),
            ("dataloader.test.mapper.augmentations.0", "64"),
        )
    ]
    done = script(
        "lazyconfig_train_net.py",
        *("--config-file", "COCO/cascade_mask_rcnn_4conv1fc_e3va_swin_t_3x.py", *own, *small),
        *("train.max_iter=1", "dataloader.train.total_batch_size=2"),
        *(f"model.roi_heads.box_heads.{k}.conv_dims=[16]" for k in range(3)),
        environment={"DETECTRON2_DATASETS": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "copypaste: Task: segm" in done.stdout + done.stderr


def test_detectron2s_own_loop_trains_the_same_config(small_config, tmp_path):
    """The pieces of Detectron2's unchanged training script, without this project's trainer."""
    cfg = small_config
    model = instantiate(cfg.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), optimizer)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
        ]
    )
    trainer.train(0, 2)
    after = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".highway." in name for name in changed)
    assert not any(".trunk." in name for name in changed)


@pytest.mark.skipif(
    not CHECKOUT.is_dir(),
    reason=f"no Detectron2 checkout in {CHECKOUT} (DETECTRON2_CHECKOUT says where); an installed "
    "Detectron2 lacks its tools",
)
def test_detectron2s_own_script_trains_the_same_config(small_overrides, tmp_path):
    config = ("--config-file", CONFIG_ROOT / CONFIG)
    run = script(
        "lazyconfig_train_net.py",
        *config,
        *small_overrides,
        "train.max_iter=2",
        folder=CHECKOUT / "tools",
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "output" / "model_final.pth").is_file()


def test_the_same_command_gives_the_same_weights(small_overrides, tmp_path):
    for name in "ab":
        run(small_overrides, "train.max_iter=2", f"train.output_dir={tmp_path / name}")
    one, other = (torch.load(tmp_path / name / "model_final.pth")["model"] for name in "ab")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_saved_config_is_complete(small_overrides, drawn, tmp_path):
    run(small_overrides, "train.max_iter=1")
    cfg = LazyConfig.load(str(tmp_path / "output" / "config.yaml"))
    assert list(cfg.data.classes) == ["red", "blue"]
    assert cfg.model.roi_heads.num_classes == 2


def run(overrides, *more, config=CONFIG, flags=(), eval_period=0):
    """Run the training script's main in this process."""
    more = [*more, f"train.eval_period={eval_period}"]
    args = default_argument_parser().parse_args(
        ["--config-file", config, *flags, *overrides, *more]
    )
    engine.run(args)


def mistake(overrides, *more, **settings) -> str:
    """The line that a mistake prints; the exit status is then 1."""
    with pytest.raises(SystemExit) as caught:
        run(overrides, *more, **settings)
    line = caught.value.code  # text: Python prints it on stderr and exits with 1
    assert isinstance(line, str) and line.startswith("error: ") and "\n" not in line
    return line


def test_mistakes_in_the_config(small_overrides):
    assert "no config file 'COCO/nothing.py'" in mistake(small_overrides, config="COCO/nothing.py")
    assert "--config-file is not given" in mistake(small_overrides, config="")
    line = mistake(small_overrides, "train.max_itr=3")
    assert "no config key 'train.max_itr': nearest: 'train.max_iter'" in line
    assert "train.amp.dtype=fp8" in mistake(
        small_overrides, "train.amp.enabled=true", "train.amp.dtype=fp8"
    )
    assert "rank=0" in mistake(small_overrides, "model.backbone.bottom_up.highway.rank=0")
    assert "no Swin preset 'swin_x'" in mistake(
        small_overrides, "model.backbone.bottom_up.preset=swin_x"
    )
    assert "--eval-only without weights" in mistake(small_overrides, flags=["--eval-only"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(small_overrides):
    line = mistake(small_overrides, "train.device=cuda")
    assert "train.device=cuda, but torch" in line and "add train.device=cpu" in line


def test_mistakes_in_the_annotation_file(small_overrides, drawn):
    absent = mistake(small_overrides, "data.train.json=/nowhere/train.json")
    assert "no annotation file /nowhere/train.json" in absent
    assert "data.train.json is not given" in mistake(small_overrides, "data.train.json=")

    def saying(**change):
        drawn.json.write_text(json.dumps({**drawn.data, **change}))
        return mistake(small_overrides, "train.max_iter=1")

    without = {k: v for k, v in drawn.data.items() if k != "categories"}
    drawn.json.write_text(json.dumps(without))
    assert "has no 'categories'" in mistake(small_overrides)
    assert "no usable annotation to train on" in saying(annotations=[])
    image = {**drawn.data["images"][0], "file_name": "gone.jpg"}
    assert "1 of 6 images" in saying(images=[image, *drawn.data["images"][1:]])
    drawn.json.write_text("{ not json")
    assert "is not JSON" in mistake(small_overrides)


def test_mistakes_in_the_validation_data_are_found_before_training(
    small_overrides, drawn, tmp_path
):
    line = mistake(small_overrides, f"data.val.images={tmp_path}")
    assert "6 of 6 images" in line and not (tmp_path / "output").exists()
    other = {**drawn.data, "categories": [{"id": 3, "name": "blue"}, {"id": 7, "name": "red"}]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    line = mistake(small_overrides, f"data.val.json={tmp_path / 'other.json'}")
    assert "has the classes blue, red, but the model learns red, blue" in line


def test_missing_coco_is_one_line(tmp_path):
    line = mistake(
        [f"train.output_dir={tmp_path}", "model.backbone.bottom_up.preset=swin_nano"],
        "train.device=cpu",
        config="COCO/cascade_mask_rcnn_e3va_swin_t_1x.py",
    )
    assert "instances_train2017.json" in line and "DETECTRON2_DATASETS" in line


def test_outputs_that_cannot_be_written(small_overrides, tmp_path):
    (tmp_path / "taken").write_text("a file")
    line = mistake(small_overrides, f"train.output_dir={tmp_path / 'taken'}")
    assert f"train.output_dir={tmp_path / 'taken'} cannot be written" in line


def test_an_image_that_does_not_decode(small_overrides, drawn):
    for path in drawn.images.iterdir():
        path.write_bytes(path.read_bytes()[:500])
    line = mistake(small_overrides, "train.max_iter=1")
    assert "cannot be read" in line and str(drawn.images) in line
    workers = mistake(small_overrides, "train.max_iter=1", "dataloader.train.num_workers=1")
    assert "cannot be read" in workers and "Traceback" not in workers


def test_boxes_outside_their_image_are_dropped_with_a_count(small_overrides, drawn, tmp_path):
    drawn.data["annotations"][0]["bbox"] = [-50, -50, 20, 20]
    drawn.data["annotations"][1]["bbox"][2] = 0
    drawn.save()
    run(small_overrides, "train.max_iter=1")
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "left out: boxes with no area inside the image (2)" in log


def test_wrong_weights(small_overrides, tmp_path):
    path = tmp_path / "weights.pth"
    save_atomically({"model": SwinTrunk("swin_t").state_dict()}, path)
    given = f"train.init_checkpoint={path}"
    assert "holds the Swin swin_t" in mistake(small_overrides, given)
    save_atomically({"model": {"roi_heads.weight": torch.zeros(3)}}, path)
    assert "lacks the trunk" in mistake(small_overrides, given)


@pytest.mark.slow
def test_a_mistake_on_the_command_line_exits_with_1_and_no_traceback(small_overrides):
    wrong = script(
        "lazyconfig_train_net.py", "--config-file", CONFIG, *small_overrides, "train.sede=1"
    )
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr
    assert wrong.stderr.splitlines()[-1].startswith("error: no config key 'train.sede'")


def test_the_demo_names_an_input_that_is_no_image(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--input", "gone.jpg", "--output", "x"])
    with pytest.raises(SystemExit, match="^error: 'gone.jpg' names no image"):
        visualize.main("")


@pytest.mark.slow
def test_names_that_are_not_utf8_and_a_terminal_in_ascii(small_overrides, drawn, tmp_path):
    bad = os.fsdecode(b"caf\xe9")
    for image in drawn.data["images"]:
        (drawn.images / image["file_name"]).rename(drawn.images / f"{bad}{image['file_name']}")
        image["file_name"] = f"{bad}{image['file_name']}"
    drawn.save()
    output, ascii_only = tmp_path / "output", {"PYTHONIOENCODING": "ascii"}
    line = mistake(small_overrides, f"train.output_dir={tmp_path / bad}")
    assert line.startswith(f"error: train.output_dir {tmp_path / bad}") and "TensorBoard" in line
    folder = drawn.images.rename(tmp_path / bad)
    changed = ["train.max_iter=2", *(f"data.{part}.images={folder}" for part in ("train", "val"))]
    arguments = ["--config-file", CONFIG, *small_overrides, *changed]
    done = script("lazyconfig_train_net.py", *arguments, environment=ascii_only)
    assert done.returncode == 0 and "Logging error" not in done.stderr, done.stderr
    assert "caf\\udce9" in (output / "log.txt").read_text()
    weights = ["--config-file", output / "config.yaml", "--weights", output / "model_final.pth"]
    places = ["--input", folder, "--output", tmp_path / "pictures"]
    done = script("demo.py", *weights, *places, environment=ascii_only)
    assert done.returncode == 0 and "6 of 6 images drawn" in done.stdout, done.stderr
