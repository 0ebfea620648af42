"""Configs of several tasks: models over one trunk train to the weights of trainings apart."""

import json

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.env import seed_all_rng

from e3va import UserError
from e3va.adapter_files.files import read_adapter
from e3va.detectron2 import engine, load_config
from e3va.detectron2.together import TogetherTrainer, agree, common_loaders, load_tasks
from e3va.swin.trunk import SwinTrunk

from .conftest import HEAD, SMALL

CONFIG = "custom/cascade_mask_rcnn_and_semantic_fpn_e3va_swin_t.py"


@pytest.fixture
def overrides(drawn, drawn_labels, pretrained, tmp_path) -> list[str]:
    """Overrides for small models of both tasks on drawn data."""
    heads = [key for key in HEAD if "sem_seg_head" in key]
    splits = ("train", "val")
    return [
        *(key for key in SMALL if "data.val" not in key),
        *heads,
        "data.val.short_edge=64",
        *(f"data.{split}.json={drawn.json}" for split in splits),
        *(f"data.{split}.images={drawn.images}" for split in splits),
        *(f"data.{split}.labels={drawn_labels}" for split in splits),
        "labels.data.classes=[background,red,blue]",
        "train.max_iter=3",
        f"train.init_checkpoint={pretrained}",
        f"train.output_dir={tmp_path / 'both'}",
    ]


@pytest.fixture
def tasks(overrides):
    tasks = load_tasks(CONFIG, overrides)
    agree(tasks)
    for cfg in tasks.values():
        engine.prepare(cfg)
    return tasks


def weights(folder) -> dict:
    return read_adapter(folder)[0]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def run(overrides, *flags, config=CONFIG):
    args = default_argument_parser().parse_args(["--config-file", config, *flags, *overrides])
    engine.run(args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["model.backbone.bottom_up.memory=plain", "train.accumulate=2"],
        ["train.clip_norm=0.1", "model.backbone.bottom_up.highway.adapter=smoa"],
        ["model.backbone.bottom_up.memory=lean", "train.amp.enabled=true"],
    ],
    ids=["plain", "smoa, clipped", "lean bf16"],
)
def test_the_weights_are_those_of_trainings_apart(changes, overrides, tmp_path, monkeypatch):
    if any("smoa" in change for change in changes):
        overrides = [key for key in overrides if "highway.rank" not in key]
    tasks = load_tasks(CONFIG, [*overrides, *changes])
    agree(tasks)
    passes, stages = [], SwinTrunk._stages
    monkeypatch.setattr(SwinTrunk, "_stages", lambda *args: passes.append(1) or stages(*args))
    for cfg in tasks.values():
        engine.prepare(cfg)
    engine.train_together({name: cfg.copy() for name, cfg in tasks.items()})
    together = len(passes)
    for name, cfg in tasks.items():
        cfg.train.output_dir = str(tmp_path / name)
        (tmp_path / name).mkdir()
        seed_all_rng(cfg.train.seed)
        engine.train(cfg)
        assert equal(weights(tmp_path / "both" / name), weights(tmp_path / name))
        about = [read_adapter(folder)[1] for folder in (tmp_path / "both" / name, tmp_path / name)]
        assert about[0] == about[1]
    parts = 2 if "train.accumulate=2" in changes else 1
    # Of the accumulated parts of a batch, two may be the same image.
    assert len(passes) - together >= together + 3 * parts


@pytest.mark.slow
def test_the_script_trains_both_and_resumes_what_was_killed(overrides, tmp_path, monkeypatch):
    run(overrides)
    for name, score in (("instances", "segm/AP"), ("labels", "sem_seg/mIoU")):
        folder = tmp_path / "both" / name
        files = {path.name for path in folder.iterdir()}
        assert {"model_final.pth", "adapter_config.json", "config.yaml"} <= files
        assert read_adapter(folder)[1].scores[score] >= 0
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2]
        load_config(folder / "config.yaml")
    assert (tmp_path / "both" / "log.txt").is_file()
    step = TogetherTrainer._run_iteration

    def stop(self, trainers, iteration):
        step(self, trainers, iteration)
        if iteration == 1:  # the checkpoint of the labels was written, that of the objects not
            raise KeyboardInterrupt

    monkeypatch.setattr(TogetherTrainer, "_run_iteration", stop)
    parts = [*overrides, f"train.output_dir={tmp_path / 'parts'}"]
    parts += ["instances.train.checkpointer.period=1000", "labels.train.checkpointer.period=2"]
    with pytest.raises(SystemExit):
        run(parts)
    monkeypatch.undo()
    run(parts, "--resume")
    for name in ("instances", "labels"):
        assert equal(weights(tmp_path / "both" / name), weights(tmp_path / "parts" / name))


def test_overrides_reach_the_tasks_that_they_are_for(overrides):
    more = ["train.log_period=7", "labels.optimizer.lr=3e-4", "data.max_detections=50"]
    tasks = load_tasks(CONFIG, [*overrides, *more])
    instances, labels = tasks["instances"], tasks["labels"]
    assert list(tasks) == ["instances", "labels"]
    assert [cfg.train.log_period for cfg in tasks.values()] == [7, 7]
    assert (instances.optimizer.lr, labels.optimizer.lr) == (1e-3, 3e-4)
    assert instances.data.max_detections == 50 and "max_detections" not in labels.data
    assert instances.data.train.images == labels.data.train.images
    assert instances.train.output_dir.endswith("both/instances")
    with pytest.raises(UserError, match="labels: no config key 'optimizer.lrr': nearest"):
        load_tasks(CONFIG, [*overrides, "labels.optimizer.lrr=3e-4"])
    with pytest.raises(UserError, match="all tasks take train.max_iter from .* instances"):
        load_tasks(CONFIG, [*overrides, "labels.train.max_iter=8"])
    with pytest.raises(UserError, match="no config key 'train.max_iterations': nearest"):
        load_tasks(CONFIG, [*overrides, "train.max_iterations=3"])
    assert list(load_tasks("custom/semantic_fpn_e3va_swin_t.py")) == [""]


def test_only_images_with_both_are_trained_on(tasks, drawn, drawn_labels):
    (drawn_labels / "1.png").unlink()
    for cfg in tasks.values():
        cfg.data.skip_missing = True
    drawn.data["annotations"] = [a for a in drawn.data["annotations"] if a["image_id"] != 6]
    drawn.save()
    loaders = common_loaders(tasks)
    files = [loader.files for loader in loaders.values()]
    assert files[0] == files[1] == [str(drawn.images / f"{n}.png") for n in (2, 3, 4, 5)]
    one, other = (next(iter(loader)) for loader in loaders.values())
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["image"], b["image"]) and "instances" in a and "sem_seg" in b


@pytest.mark.parametrize(
    "change, message",
    [
        ("labels.model.backbone.bottom_up.memory=lean", "memory=lean, the task instances standard"),
        ("labels.model.backbone.bottom_up.preset=swin_t", "expected the same trunk"),
        ("labels.model.backbone.bottom_up.highway.recipe=full", "the tasks share a frozen trunk"),
        ("labels.train.init_checkpoint=other.pth", "expected one train.init_checkpoint"),
    ],
)
def test_tasks_that_cannot_share_a_trunk_are_refused(change, message, overrides):
    overrides = [key for key in overrides if "highway.rank" not in key]
    with pytest.raises(UserError, match=message):
        agree(load_tasks(CONFIG, [*overrides, change]))


def test_images_that_differ_are_an_error(tasks):
    tasks["labels"].model.pixel_mean = [0.0, 0.0, 0.0]
    with pytest.raises(UserError, match="give the trunk different images: .*pixel_mean"):
        engine.train_together(tasks)


def test_mistakes_name_their_task(overrides, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        run([*overrides, f"labels.data.train.labels={tmp_path / 'none'}"])
    assert str(error.value).startswith("error: labels: ") and "\n" not in str(error.value)
