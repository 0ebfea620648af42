"""In the memory mode lean, neck and heads keep less memory and compute the same."""

import copy

import pytest
import torch
from torch import nn

from e3va import UserError
from e3va.cli.main import main
from e3va.torchvision import ModelConfig, build_model
from e3va.torchvision.info import describe_config
from e3va.torchvision.lean import prepare_model
from e3va.torchvision.models import MODELS, model_parts
from e3va.torchvision.trainer import STATE, Trainer, TrainSettings
from e3va.utils.measure import track_saved_bytes

SIDES = (64, 96)


def make_batch(kind):
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, *SIDES, generator=generator) for _ in range(2)]
    if kind == "semantic_fpn":
        return images, [{"labels": torch.randint(0, 2, SIDES, generator=generator)} for _ in images]
    boxes = torch.tensor([[5.0, 8.0, 40.0, 50.0], [50.0, 10.0, 90.0, 60.0]])
    masks = torch.zeros(2, *SIDES, dtype=torch.uint8)
    masks[0, 8:50, 5:30], masks[1, 20:60, 50:90] = 1, 1
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
    return images, [target, {k: v[:1] for k, v in target.items()}]


def make(make_small, kind, memory):
    """Return a model ready to train, in which only neck and heads use the memory mode."""
    _, model = make_small(kind)
    model.backbone.bottom_up.memory = memory
    model.backbone.bottom_up.prepare = lambda mixed: None
    prepare_model(model, mixed=False)
    model.backbone.bottom_up.memory = "standard"
    return model.train()


def step(model, kind, autocast=False):
    torch.manual_seed(5)
    with (
        track_saved_bytes(model, model_parts(model)) as saved,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        losses = model(*make_batch(kind))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses, gradients, saved.by_part


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [*MODELS])
def test_lean_has_the_same_losses_and_gradients_with_less_memory(kind, autocast, make_small):
    losses, gradients, kept = step(make(make_small, kind, "standard"), kind, autocast)
    lean = make(make_small, kind, "lean")
    lean_losses, lean_gradients, lean_kept = step(lean, kind, autocast)
    assert losses.keys() == lean_losses.keys() and gradients.keys() == lean_gradients.keys()
    exact = {} if autocast else {"rtol": 0, "atol": 0}
    for expected, actual in ((losses, lean_losses), (gradients, lean_gradients)):
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, **exact, msg=name)
    assert lean_kept["neck"] < kept["neck"] and lean_kept["heads"] < kept["heads"] / 2
    assert lean_kept["highway"] == kept["highway"]
    if kind == "semantic_fpn":  # the loss is computed outside the head
        assert lean_kept["other"] < kept["other"]


@pytest.mark.parametrize("kind", [*MODELS])
def test_lean_has_the_same_predictions(kind, make_small):
    images, _ = make_batch(kind)
    with torch.no_grad():
        answers = [make(make_small, kind, m).eval()(images) for m in ("standard", "lean")]
    for expected, actual in zip(*answers, strict=True):
        for key, value in expected.items():
            assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("kind", [*MODELS])
def test_a_copy_and_a_second_preparation_train_correctly(kind, make_small):
    model = make(make_small, kind, "lean")
    names = list(model.state_dict())
    model.backbone.bottom_up.memory = "lean"
    prepare_model(model, mixed=False)
    model.backbone.bottom_up.memory = "standard"
    other = copy.deepcopy(model)
    expected = step(model, kind)
    actual = step(other, kind)
    assert list(other.state_dict()) == names and expected[2] == actual[2]
    assert all(torch.equal(expected[1][n], actual[1][n]) for n in expected[1])
    own = {id(p) for p in other.parameters()}
    assert own.isdisjoint(id(p) for p in model.parameters())
    assert all(p.grad is not None for p in other.parameters() if p.requires_grad)


def test_modules_with_batch_norm_are_not_recomputed(make_small):
    model = make(make_small, "mask_rcnn", "standard")
    model.rpn.head.norm, model.roi_heads.box_head.norm = nn.BatchNorm2d(64), nn.BatchNorm1d(256)
    model.backbone.bottom_up.memory = "lean"
    prepare_model(model, mixed=False)
    for module in (model.rpn.head, model.roi_heads.box_head, model.roi_heads.box_predictor):
        assert "forward" not in vars(module)
    assert "forward" in vars(model.roi_heads.mask_predictor)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_lean_run_ends_with_the_same_bits(precision, make_small, instances, tmp_path):
    def trainer(folder):
        config, model = make_small("cascade_mask_rcnn", memory="lean")
        settings = TrainSettings(steps=4, checkpoint_every=2, precision=precision)
        return Trainer(model, config, settings, instances, folder)

    whole = trainer(tmp_path / "whole")
    whole.train()
    stopped = trainer(tmp_path / "parts")
    after = stopped.after_step

    def stop():
        after()
        if stopped.step == 2:
            raise RuntimeError("killed")

    stopped.after_step = stop
    with pytest.raises(RuntimeError, match="killed"):
        stopped.train()
    resumed = trainer(tmp_path / "parts")
    resumed.load(torch.load(tmp_path / "parts" / STATE, weights_only=True))
    resumed.train()
    expected, actual = whole.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == actual.keys()
    assert [k for k in expected if not torch.equal(expected[k], actual[k])] == []


def test_the_memory_mode_reaches_the_backbone_and_older_files_get_the_default(make_small):
    config, model = make_small("mask_rcnn", memory="lean", trunk_precision="bf16")
    backbone = model.backbone.bottom_up
    assert (backbone.memory, backbone.trunk_precision) == ("lean", "bf16")
    rows = describe_config(config)
    assert (rows["memory"], rows["trunk_precision"]) == ("lean", "bf16")
    data = config.to_dict()
    assert ModelConfig.from_dict(data, "file") == config
    del data["memory"], data["trunk_precision"]
    older = ModelConfig.from_dict(data, "file")
    assert (older.memory, older.trunk_precision) == ("standard", "auto")


def test_wrong_values_are_refused(make_small, tmp_path, capsys):
    with pytest.raises(UserError, match="memory 'tiny': expected one of"):
        make_small("mask_rcnn", memory="tiny")
    config, _ = make_small("mask_rcnn")
    object.__setattr__(config, "trunk_precision", "int4")
    with pytest.raises(UserError, match="trunk_precision 'int4': expected one of"):
        build_model(config)
    for option, value in (("--memory", "tiny"), ("--trunk-precision", "int4")):
        with pytest.raises(SystemExit):
            main(["train", "--output", str(tmp_path), option, value])
        error = capsys.readouterr().err.strip().splitlines()[0]
        assert f"argument {option}: invalid choice: '{value}'" in error


def test_the_command_trains_lean(drawn, tmp_path, capsys):
    out = str(tmp_path / "out")
    tiny = ["--trunk", "random", "--preset", "swin_nano", "--highway", "rank=4", "--size", "48"]
    data = ["--images", str(drawn.images), "--annotations", str(drawn.json), "--steps", "1"]
    options = ["--memory", "lean", "--trunk-precision", "fp32", "--output", out]
    assert main(["train", *data, *tiny, *options]) == 0
    capsys.readouterr()
    assert main(["info", f"{out}/model.pth"]) == 0
    text = capsys.readouterr().out
    assert "memory        lean" in text and "trunk_precision fp32" in text
    assert main(["train", *data, *tiny, "--output", out, "--resume", "--memory", "plain"]) == 1
    assert "--resume with --memory plain" in capsys.readouterr().err
