"""Training changes only the highway and what follows it; resumed runs equal uninterrupted ones."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from e3va import TrunkNotFrozenError, UserError
from e3va.adapter_files.files import read_adapter
from e3va.data.stream import BatchStream
from e3va.torchvision import load_model, load_pretrained
from e3va.torchvision.curves import plot, read_metrics
from e3va.torchvision.evaluate import Scores
from e3va.torchvision.trainer import (
    METRICS,
    MODEL,
    STATE,
    Trainer,
    TrainSettings,
    parameter_groups,
    rate_schedule,
    read_state,
)

from ..conftest import RANK_4

SHORT = {"steps": 6, "batch_size": 2, "checkpoint_every": 3}


def make_trainer(
    make_small, dataset, folder, kind="mask_rcnn", workers=0, highway=RANK_4, **changes
):
    config, model = make_small(kind, highway=highway)
    settings = TrainSettings(**{**SHORT, **changes})
    return Trainer(model, config, settings, dataset, folder, workers=workers)


def state_of(folder):
    return torch.load(folder / MODEL, weights_only=True)["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn", "semantic_fpn"])
@pytest.mark.parametrize("recipe", ["e3va_chain", "frozen", "full"])
def test_only_the_recipe_full_changes_the_trunk(kind, recipe, make_small, request, tmp_path):
    dataset = request.getfixturevalue("label_maps" if kind == "semantic_fpn" else "instances")
    trainer = make_trainer(make_small, dataset, tmp_path, kind, highway=recipe, steps=3)
    if kind == "semantic_fpn":  # three classes
        trainer.model.sem_seg_head.predictor = torch.nn.Conv2d(64, 3, 1)
        trainer = Trainer(trainer.model, trainer.config, trainer.settings, dataset, tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    trunk = {k for k in changed if ".trunk." in k}
    adapters = {k for k in changed if ".highway." in k and ".out_norm." not in k}
    assert bool(trunk) == (recipe == "full") and bool(adapters) == (recipe == "e3va_chain")
    assert any(".out_norm." in k for k in changed) and any(".fpn." in k for k in changed)


@pytest.mark.slow
@pytest.mark.parametrize("precision, workers", [("fp32", 0), ("fp32", 2), ("bf16", 0)])
def test_resumed_run_ends_with_the_same_bits(precision, workers, make_small, instances, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    make_trainer(make_small, instances, whole, precision=precision).train()
    trainer = make_trainer(make_small, instances, parts, precision=precision)
    step = trainer.after_step

    def stop():
        step()
        if trainer.step == 3:
            raise RuntimeError("killed")

    trainer.after_step = stop
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train()
    torch.manual_seed(99)
    trainer = make_trainer(make_small, instances, parts, precision=precision, workers=workers)
    for parameter in trainer.model.parameters():  # all must come from the checkpoint
        parameter.data.add_(1)
    trainer.load(read_state(parts))
    assert trainer.step == 3
    trainer.train()
    assert same(state_of(whole), state_of(parts))
    lines = [
        [json.loads(line) for line in (f / METRICS).read_text().splitlines()]
        for f in (whole, parts)
    ]
    for one, other in zip(*lines, strict=True):
        assert one["step"] == other["step"] and one["loss"] == other["loss"]


@pytest.mark.slow
def test_an_interrupt_finishes_the_step_and_saves(make_small, instances, tmp_path):
    trainer = make_trainer(make_small, instances, tmp_path, checkpoint_every=0)
    forward = trainer.model.forward

    def interrupting(*args):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of the third step
        return forward(*args)

    trainer.model.forward = interrupting
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert read_state(tmp_path)["step"] == 3
    resumed = make_trainer(make_small, instances, tmp_path, checkpoint_every=0)
    resumed.load(read_state(tmp_path))
    resumed.train()
    whole = make_trainer(make_small, instances, tmp_path / "whole")
    whole.train()
    assert same(state_of(tmp_path), state_of(tmp_path / "whole"))


@pytest.mark.slow
def test_a_killed_process_resumes(drawn, tmp_path):
    """A whole checkpoint remains after SIGKILL at any moment."""
    command = [
        sys.executable,
        "-m",
        "e3va",
        "train",
        "--output",
        str(tmp_path / "o"),
    ]
    data = ["--images", str(drawn.images), "--annotations", str(drawn.json), "--size", "48"]
    options = [
        "--trunk",
        "random",
        "--preset",
        "swin_nano",
        "--highway",
        "rank=4",
        "--checkpoint-every",
        "1",
    ]
    command += [*data, *options, "--steps"]
    process = subprocess.Popen([*command, "500"], stdout=subprocess.DEVNULL)
    state = tmp_path / "o" / STATE
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    process.kill()
    process.wait()
    step = read_state(tmp_path / "o")["step"]
    assert step >= 1
    # Another number of steps is refused, and the checkpoint stays.
    done = subprocess.run([*command, "9", "--resume"], capture_output=True, text=True)
    assert done.returncode == 1 and "--steps 9, but the run in" in done.stderr
    process = subprocess.Popen(
        [*command, "500", "--resume", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while read_state(tmp_path / "o")["step"] <= step and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"step {step} of 500" in out
    assert f"e3va train --output {state.parent} --resume" in err and "Traceback" not in err


def test_learning_rates_and_decay_by_parameter(make_small):
    _, model = make_small("mask_rcnn")
    groups = parameter_groups(model, TrainSettings(lr=1.0, adapter_lr=4.0, weight_decay=0.1))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(found) == len(trained) == sum(len(g["params"]) for g in groups)
    stage = "backbone.bottom_up.highway.stages.0"
    assert found[id(trained[f"{stage}.mlp.0.down.weight"])] == (4.0, 0.1)
    assert found[id(trained[f"{stage}.mlp.0.down.bias"])] == (4.0, 0.0)
    assert found[id(trained[f"{stage}.out_norm.weight"])] == (1.0, 0.0)
    assert found[id(trained["roi_heads.box_head.fc6.weight"])] == (1.0, 0.1)
    _, full = make_small("mask_rcnn", highway="full")
    groups = parameter_groups(full, TrainSettings(lr=1.0, trunk_lr=0.3))
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, parameter in full.named_parameters():
        assert rates[id(parameter)] == (0.3 if ".trunk." in name else 1.0), name


def test_schedule_warms_up_and_ends_near_zero():
    schedule = rate_schedule(100)
    factors = [schedule(step / 100) for step in range(100)]
    assert factors[:25] == pytest.approx([0.04 * step for step in range(1, 26)])
    assert factors[25] == 1
    assert all(a >= b for a, b in zip(factors[25:], factors[26:], strict=False))
    assert 0 < factors[-1] < 0.001
    # By hand: 10 of 40 steps warm up, and step 25 is halfway down the cosine of the other 30.
    schedule = rate_schedule(40)
    for step, factor in {
        0: 0.1,
        9: 1,
        10: 1,
        25: 0.5,
        39: 0.5 * (1 + math.cos(math.pi * 29 / 30)),
    }.items():
        assert schedule(step / 40) == pytest.approx(factor, rel=1e-12), step
    assert rate_schedule(1)(0) == 1


def test_a_trunk_in_the_optimizer_stops_the_run(make_small, instances, tmp_path):
    trainer = make_trainer(make_small, instances, tmp_path)
    trunk = trainer.model.backbone.bottom_up.trunk
    trainer.optimizer.add_param_group({"params": [trunk.patch_embed.proj.weight]})
    trainer.rates.append(0.1)
    with pytest.raises(TrunkNotFrozenError, match="is in the optimizer"):
        trainer.train()


def test_a_loss_that_is_not_finite_gives_one_line(make_small, instances, tmp_path):
    trainer = make_trainer(make_small, instances, tmp_path)
    with torch.no_grad():
        trainer.model.roi_heads.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="nan at step 0.* --lr"):
        trainer.train()
    assert not (tmp_path / MODEL).exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_the_run_with_a_checkpoint(
    workers, make_small, instances, tmp_path
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_trainer(make_small, instances, whole, batch_size=1).train()
    trainer = make_trainer(
        make_small, instances, broken, batch_size=1, workers=workers, checkpoint_every=0
    )
    wide = [record["width"] > record["height"] for record in instances.records]
    order = [index for _, [(_, index)] in zip(range(4), BatchStream(wide, 1, 0), strict=False)]
    image = Path(instances.records[order[3]]["path"])
    content = image.read_bytes()
    image.write_bytes(content[:200])
    with pytest.raises(UserError, match=f"image .*{image.name} cannot be read"):
        trainer.train()
    image.write_bytes(content)
    assert read_state(broken)["step"] == 3
    resumed = make_trainer(make_small, instances, broken, batch_size=1)
    resumed.load(read_state(broken))
    resumed.train()
    assert same(state_of(whole), state_of(broken))


def test_checkpoints_that_cannot_be_resumed(make_small, instances, tmp_path):
    with pytest.raises(UserError, match="--resume: no .*training.pth"):
        read_state(tmp_path)
    trainer = make_trainer(make_small, instances, tmp_path)
    trainer.save()
    state = read_state(tmp_path)
    del state["optimizer"]
    torch.save(state, tmp_path / STATE)
    with pytest.raises(UserError, match="lacks optimizer"):
        read_state(tmp_path)
    os.truncate(tmp_path / STATE, 2000)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_state(tmp_path)
    with pytest.raises(UserError, match="precision 'fp8': expected one of"):
        make_trainer(make_small, instances, tmp_path, precision="fp8")


def test_metrics_of_lost_steps_are_dropped_on_resume(make_small, instances, tmp_path):
    trainer = make_trainer(make_small, instances, tmp_path)
    trainer.save()
    path = tmp_path / METRICS
    path.write_text('{"step": 0, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 5, "lo')
    trainer.load(read_state(tmp_path))
    assert path.read_text() == '{"step": 0, "loss": 1}\n'


def test_a_model_is_written_before_it_is_scored(make_small, instances, pretrained, tmp_path):
    config, model = make_small("mask_rcnn", trunk=str(pretrained))
    load_pretrained(model, str(pretrained))
    settings = TrainSettings(steps=2, checkpoint_every=0, eval_every=1)
    trainer = Trainer(model, config, settings, instances, tmp_path, evaluate=lambda: steps.pop())
    steps = []
    with pytest.raises(IndexError):  # in the evaluation after the first step
        trainer.train()
    assert read_state(tmp_path)["step"] == 1 and not (tmp_path / MODEL).exists()
    trainer.load(read_state(tmp_path))
    with pytest.raises(IndexError):  # in the last one
        trainer.train()
    for path in (tmp_path, tmp_path / MODEL, tmp_path / STATE):
        found = load_model(path)[0].state_dict()
        assert same(found, trainer.model.state_dict())
    assert torch.load(tmp_path / MODEL, weights_only=True)["scores"] == {}
    steps = [Scores({"AP mask": 12.5})]
    trainer.train()
    assert torch.load(tmp_path / MODEL, weights_only=True)["scores"] == {"AP mask": 12.5}
    assert read_adapter(tmp_path)[1].scores == {"AP mask": 12.5}


def test_a_score_without_any_object_is_null_in_json(make_small, instances, tmp_path):
    trainer = make_trainer(make_small, instances, tmp_path, steps=1)
    trainer.evaluate = lambda: Scores({"AP box": math.nan, "AP mask": 50.0})
    trainer.train()
    metrics = read_metrics(tmp_path)
    assert metrics[-1] == {"step": 1, "AP box": None, "AP mask": 50.0}
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["scores"] == {"AP box": None, "AP mask": 50.0}
    pytest.importorskip("matplotlib")
    plot({"": metrics, "nothing": [{"step": 1, "loss": 1.0, "AP mask": None}]}, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000
