"""e3va convert makes adapters of whole models and back, to the bit, and refuses the rest."""

import importlib.util
import os
from dataclasses import replace

import pytest
import torch

from e3va import E3VABackbone, UserError
from e3va.adapter_files.files import (
    CONFIG_FILE,
    FULL_KEY,
    MODEL_FILE,
    load_adapter,
    read_adapter,
    save_adapter,
    write_adapter,
)
from e3va.adapter_files.heads import to_framework
from e3va.cli.main import main
from e3va.torchvision import load_model
from e3va.weights.loading import load_trunk

from ..conftest import write_trunk
from ..torchvision.test_loading import KEPT
from .test_cli import fails


def convert(capsys, *arguments):
    assert main(["convert", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def equal(one, other):
    """Return whether names, types and values of all tensors are equal."""
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("stored", KEPT)
def test_conversion_loses_nothing_in_either_direction(
    stored, make_trained, pretrained, tmp_path, capsys
):
    changes, mixed = KEPT[stored]
    make_trained("mask_rcnn", "fruit", mixed, **changes)
    fruit, apart, back = tmp_path / "fruit", tmp_path / "apart", tmp_path / "back.pth"
    out = convert(capsys, fruit / "model.pth", "--output", apart)
    assert "the trunk swin.pth (fingerprint" in out and "optimizer" not in out
    assert (apart / CONFIG_FILE).read_bytes() == (fruit / CONFIG_FILE).read_bytes()
    assert equal(read_adapter(apart)[0], read_adapter(fruit)[0])
    out = convert(capsys, apart, "--output", back, "--trunk", pretrained)
    assert "the whole model, for e3va" in out
    before, after = read(fruit / "model.pth"), read(back)
    assert equal(before["model"], after["model"])
    assert after[FULL_KEY] == before[FULL_KEY] and after["step"] == before["step"] == 7
    assert {**before["config"], "trunk": "swin.pth"} == after["config"]
    assert equal(load_model(back)[0].state_dict(), load_model(fruit)[0].state_dict())
    out = convert(capsys, fruit / "training.pth", "--output", tmp_path / "again")
    assert "optimizer" in out
    assert equal(read_adapter(tmp_path / "again")[0], read_adapter(apart)[0])


@pytest.mark.parametrize("stored", KEPT)
def test_a_checkpoint_without_a_record_of_its_trunk_is_compared_with_it(
    stored, make_trained, pretrained, tmp_path, capsys
):
    """Earlier versions of this library and Detectron2's own trainer write such files."""
    changes, mixed = KEPT[stored]
    make_trained("semantic_fpn", "fruit", mixed, **changes)
    expected = read_adapter(tmp_path / "fruit")
    data = read(tmp_path / "fruit" / "model.pth")
    del data[FULL_KEY]
    ours, theirs = tmp_path / "ours.pth", tmp_path / "theirs.pth"
    torch.save(data, ours)
    convert(capsys, ours, "--output", tmp_path / "a")  # the trunk is named in its own description
    found = read_adapter(tmp_path / "a")
    assert equal(found[0], expected[0]) and found[1] == replace(expected[1], scores=found[1].scores)
    torch.save({"model": data["model"], "iteration": 3}, theirs)
    fails(
        capsys,
        ["convert", theirs, "--output", tmp_path / "b"],
        "theirs.pth .* --trunk FILE",
    )
    other = write_trunk(tmp_path / "other.pth", seed=8)
    arguments = ["convert", theirs, "--output", tmp_path / "b", "--trunk"]
    fails(capsys, [*arguments, other], "theirs.pth .* other.pth .fingerprint")
    assert not (tmp_path / "b").exists()
    convert(capsys, *arguments[1:], pretrained)
    state, about = read_adapter(tmp_path / "b")
    assert equal(state, expected[0]) and about.trunk == expected[1].trunk
    convert(capsys, tmp_path / "b", "--output", tmp_path / "back.pth")
    assert equal(read(tmp_path / "back.pth")["model"], data["model"])


def test_a_detectron2_model_survives_conversion_and_back(
    make_trained, pretrained, tmp_path, capsys
):
    make_trained("cascade_mask_rcnn", "fruit")
    data = read(tmp_path / "fruit" / "model.pth")
    state, _ = to_framework(data["model"], "detectron2")
    own = {**data[FULL_KEY], "framework": "detectron2", "model": {"config": "COCO/x.py"}}
    torch.save({"model": state, FULL_KEY: own, "iteration": 9}, tmp_path / "model_final.pth")
    convert(capsys, tmp_path / "model_final.pth", "--output", tmp_path / "a")
    out = convert(capsys, tmp_path / "a", "--output", tmp_path / "back.pth")
    assert "for Detectron2" in out
    back = read(tmp_path / "back.pth")
    assert equal(back["model"], state) and back[FULL_KEY] == own
    assert load_model(tmp_path / "a")[1].model == "cascade_mask_rcnn"


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="no Detectron2")
def test_detectron2_reads_the_whole_model_of_an_adapter(pretrained, tmp_path, capsys):
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import instantiate

    from e3va.detectron2 import load_config

    cfg = load_config("COCO/cascade_mask_rcnn_e3va_swin_t_1x.py").model
    cfg.backbone.bottom_up.preset = "swin_nano"
    cfg.roi_heads.num_classes = 2
    one, other = instantiate(cfg), instantiate(cfg)
    load_trunk(one.backbone.bottom_up.trunk, read(pretrained)["model"], str(pretrained))
    model = {"config": "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"}
    save_adapter(one, tmp_path / "a", framework="detectron2", model=model, classes=("cat", "dog"))
    convert(capsys, tmp_path / "a", "--output", tmp_path / "whole.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "whole.pth"))
    assert equal(one.state_dict(), other.state_dict())
    ours, config = load_model(tmp_path / "a")
    assert (config.model, config.heads) == ("cascade_mask_rcnn", "standard")
    assert (config.classes, config.size, config.max_size) == (("cat", "dog"), 800, 1333)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        theirs = one.eval().backbone(images)
        for level, feature in ours.backbone(images).items():
            name = {"pool": "p6"}.get(level, level)
            torch.testing.assert_close(feature, theirs[name], rtol=1e-4, atol=1e-5)


def test_what_convert_refuses(make_trained, make_small, pretrained, tmp_path, capsys):
    make_trained("semantic_fpn", "fruit")
    fruit, other = tmp_path / "fruit", write_trunk(tmp_path / "other.pth", seed=8)
    before = sorted(tmp_path.rglob("*"))

    def refuses(pattern, *arguments):
        fails(capsys, ["convert", *arguments], pattern)
        assert sorted(tmp_path.rglob("*")) == before  # nothing half-written

    whole = tmp_path / "whole.pth"
    refuses("--output .*expected the name of a file", fruit, "--output", tmp_path)
    refuses("--output .*expected the name of a file", fruit, "--output", tmp_path / "x.bin")
    refuses("other.pth .*--force", fruit, "--output", other)
    refuses("fruit .*--force", fruit / "model.pth", "--output", fruit)
    refuses("other.pth is a file: expected a folder", fruit / "model.pth", "--output", other)
    refuses("no weights file .*none.pth", tmp_path / "none.pth", "--output", whole)
    refuses("swin.pth/x", fruit, "--output", pretrained / "x" / "model.pth")
    refuses("fingerprint .*fingerprint", fruit, "--output", whole, "--trunk", other)
    arguments = (fruit / "model.pth", "--output", tmp_path / "a", "--trunk", other)
    refuses("swin.pth .fingerprint .* other.pth .fingerprint", *arguments)
    refuses("holds no E³VA backbone", pretrained, "--output", tmp_path / "a")
    refuses("e3va://nothing|no 'nothing'", "e3va://nothing", "--output", whole)
    os.truncate(fruit / MODEL_FILE, 999)
    refuses("cannot be read as safetensors", fruit, "--output", whole)
    convert(capsys, fruit / "model.pth", "--output", fruit, "--force")
    convert(capsys, fruit, "--output", other, "--force")
    assert read(other)["config"]["model"] == "semantic_fpn"


@pytest.mark.parametrize("changes", [{"highway": "full"}, {"trunk": "random"}])
def test_models_without_an_adapter_say_why(changes, make_small, tmp_path, capsys):
    config, model = make_small("semantic_fpn", **changes)
    data = {"model": model.state_dict(), "config": config.to_dict()}
    torch.save(data, tmp_path / "model.pth")
    arguments = ["convert", tmp_path / "model.pth", "--output", tmp_path / "a"]
    fails(capsys, arguments, "has no adapter: .*the whole model is the result")


def test_an_adapter_without_a_framework_becomes_plain_weights(make_trained, tmp_path, capsys):
    make_trained("semantic_fpn", "fruit")
    state, about = read_adapter(tmp_path / "fruit")
    write_adapter(state, replace(about, framework="", model={}), tmp_path / "fruit")
    out = convert(capsys, tmp_path / "fruit", "--output", tmp_path / "whole.pth")
    assert "for torch.load" in out
    expected = read(tmp_path / "fruit" / "model.pth")["model"]
    assert equal(read(tmp_path / "whole.pth")["model"], expected)


@pytest.mark.parametrize("which", ["model.pth", "."])
def test_backbone_only_writes_the_highway(which, make_trained, pretrained, tmp_path, capsys):
    """Other tasks can start from such a file; it gives no whole model."""
    _, whole = make_trained("mask_rcnn", "fruit")
    fruit, small = tmp_path / "fruit", tmp_path / "small"
    out = convert(capsys, fruit / which, "--output", small, "--backbone-only")
    assert "the highway, for the trunk swin.pth" in out
    state, config = read_adapter(small)
    before = read_adapter(fruit)[0]
    assert equal(state, {k: v for k, v in before.items() if ".highway." in k})
    assert 0 < len(state) < len(before) and config.classes == ()
    with pytest.raises(UserError, match="e3va train --adapter"):
        load_model(small)
    other = E3VABackbone("swin_nano", {"rank": 4})
    load_trunk(other.trunk, read(pretrained)["model"], str(pretrained))
    load_adapter(other, small, backbone_only=True)
    assert equal(other.highway.state_dict(), whole.backbone.bottom_up.highway.state_dict())
