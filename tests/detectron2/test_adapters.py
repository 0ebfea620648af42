"""A training ends with an adapter's files, and they give the trained model back."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate

from e3va import UserError
from e3va.adapter_files.description import AdapterConfig
from e3va.adapter_files.files import (
    CONFIG_FILE,
    FULL_KEY,
    MODEL_FILE,
    merge,
    read_adapter,
    read_config,
    split,
    write_adapter,
)
from e3va.adapter_files.heads import to_framework
from e3va.detectron2 import engine
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.detectron2.hooks import AdapterWriter
from e3va.utils.atomic import save_atomically
from e3va.weights.checkpoint import load_file
from e3va.weights.origin import fingerprint

CONFIG = "custom/cascade_mask_rcnn_e3va_swin_t.py"
TRUNK = "backbone.bottom_up.trunk."


def differing(one, other):
    return [
        k
        for k in {*one, *other}
        if k not in one or k not in other or not torch.equal(one[k].float(), other[k].float())
    ]


def train(cfg, resume=False):
    Path(cfg.train.output_dir).mkdir(exist_ok=True)
    return engine.train(cfg, resume=resume)


def whole(cfg):
    return torch.load(Path(cfg.train.output_dir) / "model_final.pth", weights_only=True)


def test_files_hold_everything_but_the_trunk_and_a_description(
    pretrained_config, pretrained, tmp_path
):
    train(pretrained_config)
    output = tmp_path / "output"
    state, description = read_adapter(output)
    final = whole(pretrained_config)
    expected = {k: v for k, v in final["model"].items() if not k.startswith(TRUNK)}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    assert (description.framework, description.model, description.steps) == (
        "detectron2",
        {"config": CONFIG},
        2,
    )
    assert description.classes == ("red", "blue")
    assert description.trained_on == "6 images with 12 annotated objects (annotations.json)"
    assert description.trunk.source == "swin.pth"
    assert description.trunk.fingerprint == fingerprint(load_file(pretrained)["model"])
    last = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()][-1]
    assert {"bbox/AP", "segm/AP50"} <= description.scores.keys()
    assert all(last[name] == value for name, value in description.scores.items())
    assert str(tmp_path) not in (output / CONFIG_FILE).read_text()
    described = final[FULL_KEY]
    assert described["classes"] == ["red", "blue"] and described["steps"] == 2
    assert described["trunk"]["fingerprint"] == description.trunk.fingerprint


def stop_at(trainer, iteration):
    if trainer.iter == iteration:
        raise UserError("stopped")


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_writes_the_same_files(pretrained_config, tmp_path):
    """Also a finished run: it writes its files again, with the same contents."""
    cfg = pretrained_config
    cfg.train.amp.enabled = True  # which rounds the trunk
    cfg.train.checkpointer.period = 1
    cfg.train.output_dir = str(tmp_path / "whole")
    torch.manual_seed(5)
    train(cfg)
    expected, expected_description = read_adapter(tmp_path / "whole")
    assert expected_description.trunk.stored == "bf16"

    output = tmp_path / "parts"
    output.mkdir()
    cfg.train.output_dir = str(output)
    torch.manual_seed(5)
    trainer, checkpointer = engine.build_trainer(cfg)
    checkpointer.load(cfg.train.init_checkpoint)
    step = trainer.before_step
    trainer.before_step = lambda: (stop_at(trainer, 1), step())
    with pytest.raises(UserError, match="stopped"):
        trainer.train(0, 2)
    assert not (output / MODEL_FILE).exists()
    for start in (1, 2):
        assert train(cfg, resume=True).start_iter == start
        state, description = read_adapter(output)
        assert not differing(state, expected)
        assert description == expected_description
        (output / MODEL_FILE).unlink()


def no_adapter(cfg, why):
    output = Path(cfg.train.output_dir)
    log = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e3va.detectron2.hooks.logger.info", lambda text, *a: log.append(text % a))
        train(cfg, resume=(output / "last_checkpoint").is_file())
    lines = [line for line in log if line.startswith("No adapter files: ")]
    assert len(lines) == 1 and why in lines[0] and "model_final.pth is the whole" in lines[0]
    assert (output / "model_final.pth").is_file()
    assert not (output / MODEL_FILE).exists() and not (output / CONFIG_FILE).exists()


def test_no_adapter_of_a_trunk_without_a_source(small_config):
    """Random weights; also after a resumption, when they come from a checkpoint."""
    for small_config.train.max_iter in (1, 2):
        no_adapter(small_config, "names the trunk's weights")


def test_no_adapter_of_a_trunk_that_trained(pretrained_config):
    pretrained_config.model.backbone.bottom_up.highway = "full"
    no_adapter(pretrained_config, "the trunk is trained too")
    assert FULL_KEY not in whole(pretrained_config)


def predict(model):
    torch.manual_seed(1)
    image = torch.rand(3, 64, 96) * 255
    with torch.no_grad():
        instances = model.eval()([{"image": image}])[0]["instances"]
    return instances.pred_boxes.tensor, instances.scores, instances.pred_masks


@pytest.mark.parametrize(
    ("precision", "memory"),
    [("fp32", "standard"), ("bf16", "standard"), ("fp32", "lean"), ("bf16", "lean")],
)
def test_whole_to_adapter_and_back_is_exact(pretrained_config, tmp_path, precision, memory):
    """The trunk is kept in float32, in half precision, in 8 bits, in both."""
    cfg, output = pretrained_config, tmp_path / "output"
    cfg.train.amp.enabled = precision != "fp32"
    cfg.model.backbone.bottom_up.memory = memory
    train(cfg)
    final = whole(cfg)
    written, _ = read_adapter(output)
    state, description = split(final, final["model"], "model_final.pth")
    assert not differing(state, written)
    write_adapter(state, description, tmp_path / "converted")
    again = merge(
        *read_adapter(tmp_path / "converted"), load_file(tmp_path / "swin.pth")["model"], "x"
    )
    assert again.keys() == final["model"].keys()
    for name, value in final["model"].items():
        assert torch.equal(again[name], value) and again[name].dtype == value.dtype, name

    save_atomically({"model": again}, tmp_path / "again.pth")
    models = [instantiate(cfg.model) for _ in range(3)]
    DetectionCheckpointer(models[0]).load(str(output / "model_final.pth"))
    DetectionCheckpointer(models[1]).load(str(tmp_path / "again.pth"))
    HighwayCheckpointer(models[2]).load(str(output))  # the trunk lies in the folder above
    expected = predict(models[0])
    assert len(expected[0]) > 3
    for model in models[1:]:
        assert not differing(model.state_dict(), models[0].state_dict())
        assert all(map(torch.equal, predict(model), expected))


@pytest.mark.parametrize("name", ["", MODEL_FILE, CONFIG_FILE])
def test_loads_a_folder_or_either_file(pretrained_config, tmp_path, name):
    train(pretrained_config)
    model = instantiate(pretrained_config.model)
    checkpointer = HighwayCheckpointer(model)
    assert checkpointer.load(str(tmp_path / "output" / name)) == {}
    assert not differing(model.state_dict(), whole(pretrained_config)["model"])
    assert checkpointer.adapter == read_config(tmp_path / "output")
    assert model.backbone.bottom_up.trunk.origin == checkpointer.adapter.trunk


def test_the_trunk_is_read_once_where_the_model_has_it(pretrained_config, pretrained, tmp_path):
    train(pretrained_config)
    model = instantiate(pretrained_config.model)
    HighwayCheckpointer(model).load(str(pretrained))
    pretrained.unlink()
    HighwayCheckpointer(model).load(str(tmp_path / "output"))
    assert not differing(model.state_dict(), whole(pretrained_config)["model"])
    resumed = instantiate(pretrained_config.model)  # a whole model brings its trunk
    HighwayCheckpointer(resumed).load(str(tmp_path / "output" / "model_final.pth"))
    HighwayCheckpointer(resumed).load(str(tmp_path / "output"))


@pytest.mark.slow
def test_trains_and_evaluates_from_an_adapter(pretrained_config, pretrained, tmp_path):
    train(pretrained_config)
    source = pretrained.rename(tmp_path / "elsewhere.pth")
    cfg = pretrained_config.copy()
    cfg.train.init_checkpoint = str(tmp_path / "output")
    cfg.train.output_dir = str(tmp_path / "second")
    with pytest.raises(UserError, match=r"swin.pth .*train.trunk="):
        train(cfg)
    cfg.train.trunk = str(source)
    train(cfg)
    first, second = read_config(tmp_path / "output"), read_config(tmp_path / "second")
    assert second.trunk == first.trunk
    model = instantiate(cfg.model)
    checkpointer = HighwayCheckpointer(model, **engine.adapter_options(cfg))
    checkpointer.load(cfg.train.init_checkpoint)
    results = engine.evaluate(cfg, model)
    assert results["bbox"]["AP"] == first.scores["bbox/AP"]
    assert results["segm"]["AP"] == first.scores["segm/AP"]


@pytest.mark.parametrize(("first", "second"), [("standard", "lean"), ("lean", "standard")])
def test_a_further_training_rounds_the_trunk_its_own_way(
    pretrained_config, tmp_path, first, second
):
    cfg = pretrained_config
    cfg.train.amp.enabled = True
    cfg.model.backbone.bottom_up.memory = first
    train(cfg)
    cfg.train.init_checkpoint = cfg.train.output_dir
    cfg.train.output_dir = str(tmp_path / "second")
    cfg.model.backbone.bottom_up.memory = second
    train(cfg)
    state, description = read_adapter(tmp_path / "second")
    assert description.trunk.stored == {"lean": "int8 bf16", "standard": "bf16"}[second]
    again = merge(state, description, load_file(tmp_path / "swin.pth")["model"], "swin.pth")
    assert not differing(again, whole(cfg)["model"])


def test_its_highway_starts_another_task(pretrained_config, tmp_path):
    train(pretrained_config)
    pretrained_config.model.roi_heads.num_classes = 5
    model = instantiate(pretrained_config.model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folder = str(tmp_path / "output")
    with pytest.raises(UserError) as caught:
        HighwayCheckpointer(model).load(folder)
    line = caught.value.line
    assert re.search(r"of another shape \(\S+: \[3.*\] in the file, \[6.*\] in the model\)", line)
    assert "train.adapter_parts=backbone" in line and "(classes: red, blue)" in line
    assert not differing(model.state_dict(), before)
    HighwayCheckpointer(model, adapter_parts="backbone").load(folder)
    changed = differing(model.state_dict(), before)
    trained = whole(pretrained_config)["model"]
    assert changed and all(k.startswith("backbone.bottom_up.") for k in changed)
    after = model.state_dict()
    highway = [k for k in trained if k.startswith("backbone.bottom_up.highway.")]
    assert all(torch.equal(after[k], trained[k]) for k in highway)
    with pytest.raises(UserError, match="adapter_parts 'head': expected one of all, back"):
        HighwayCheckpointer(model, adapter_parts="head")


def test_other_class_names_are_pointed_out(pretrained_config, tmp_path, monkeypatch):
    train(pretrained_config)
    model = instantiate(pretrained_config.model)
    for classes, warned in ((("blue", "red"), True), (("red", "blue"), False), ((), False)):
        checkpointer, lines = HighwayCheckpointer(model, about={"classes": classes}), []
        with monkeypatch.context() as patch:
            patch.setattr(checkpointer.logger, "warning", lambda t, *a, to=lines: to.append(t % a))
            checkpointer.load(str(tmp_path / "output"))
        assert any("has the classes red, blue" in x for x in lines) == warned


def test_an_adapter_of_the_other_framework_brings_its_heads(pretrained_config, tmp_path):
    for head in pretrained_config.model.roi_heads.box_heads:
        head.fc_dims = [32, 32]
    train(pretrained_config)
    state, description = read_adapter(tmp_path / "output")
    theirs, left = to_framework(state, "torchvision")
    assert not left and theirs.keys() != state.keys()
    write_adapter(
        theirs, replace(description, framework="torchvision", model={}), tmp_path / "theirs"
    )
    model = instantiate(pretrained_config.model)
    HighwayCheckpointer(model).load(str(tmp_path / "theirs"))
    assert not differing(model.state_dict(), whole(pretrained_config)["model"])


def refuse(model, path, match, **options):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=match) as caught:
        HighwayCheckpointer(model, **options).load(str(path))
    assert "\n" not in str(caught.value) and str(path) in caught.value.line
    assert not differing(model.state_dict(), before)


def test_mistakes_are_one_line_and_change_nothing(pretrained_config, pretrained, tmp_path):
    train(pretrained_config)
    output = tmp_path / "output"
    description = read_config(output)
    model = instantiate(pretrained_config.model)
    other = {k: v + 1 for k, v in load_file(pretrained)["model"].items()}
    save_atomically({"model": other}, tmp_path / "other.pth")
    both = f"swin.pth .fingerprint {description.trunk.short}.*other.pth .fingerprint "
    refuse(model, output, both + fingerprint(other)[:16], trunk=tmp_path / "other.pth")
    overridden = instantiate(pretrained_config.model)
    HighwayCheckpointer(overridden, trunk=tmp_path / "other.pth", any_trunk=True).load(str(output))
    assert not differing(overridden.backbone.bottom_up.trunk.state_dict(), other)
    with pytest.raises(UserError, match="no weights file .*gone.pth"):
        HighwayCheckpointer(model, trunk=tmp_path / "gone.pth").load(str(output))
    refuse(model, tmp_path / "drawn", "no weights file .*adapter's folder")

    pretrained_config.model.backbone.bottom_up.preset = "swin_mini"
    refuse(instantiate(pretrained_config.model), output, "preset swin_nano, not swin_mini")
    file = output / MODEL_FILE
    file.write_bytes(file.read_bytes()[:-50])
    refuse(model, output, "cannot be read as safetensors")


def test_scores_are_numbers_of_the_newest_evaluation(tmp_path):
    writer = AdapterWriter(tmp_path, {})
    writer.record({"bbox": {"AP": 1.0, "AP-fig": 2.0}})
    writer.record({"bbox": {"AP": np.float64(3), "AP-fig": float("nan")}})
    for nothing in (None, {}):  # no validation data; another process than the first
        writer.record(nothing)
    written = AdapterConfig(None, None, "trunk.", scores=writer.scores).scores
    assert json.dumps(written, allow_nan=False) == '{"bbox/AP": 3.0}'


def test_heuristics_and_checkpoints_without_a_description(small_config, pretrained, tmp_path):
    """A trunk's origin is known from a file of its own, not from a whole model that is silent."""
    model = instantiate(small_config.model)
    HighwayCheckpointer(model).load(f"{pretrained}?matching_heuristics=True")
    origin = model.backbone.bottom_up.trunk.origin
    assert origin.source == "swin.pth"
    assert origin.fingerprint == fingerprint(load_file(pretrained)["model"])
    save_atomically({"model": model.state_dict()}, tmp_path / "silent.pth")
    HighwayCheckpointer(model).load(str(tmp_path / "silent.pth"))
    assert model.backbone.bottom_up.trunk.origin is None
