"""The checkpointer tells what a file holds, loads what fits, and refuses the rest in one line."""

import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate

from e3va import SwinTrunk, UserError
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.swin.presets import PRESETS
from e3va.utils.atomic import save_atomically


@pytest.fixture
def model(small_config):
    return instantiate(small_config.model)


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model, before):
    after = model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def official(preset="swin_nano"):
    """A file as the official Swin repository publishes it: classifier and buffers included."""
    state = {
        name: torch.randn_like(value) for name, value in SwinTrunk(preset).state_dict().items()
    }
    width = PRESETS[preset].dims[-1]
    state["norm.weight"], state["norm.bias"] = torch.full((width,), 7.0), torch.zeros(width)
    state["head.weight"], state["head.bias"] = torch.zeros(10, width), torch.zeros(10)
    window = PRESETS[preset].window ** 2
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(window, window).long()
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, window, window)
    return state


def test_official_swin_goes_into_the_trunk_and_nowhere_else(model, tmp_path):
    state = official()
    save_atomically({"model": state}, tmp_path / "swin.pth")
    before = snapshot(model)
    HighwayCheckpointer(model).load(str(tmp_path / "swin.pth"))
    prefix = "backbone.bottom_up.trunk."
    assert changed(model, before) == {name for name in before if name.startswith(prefix)}
    for name, value in model.backbone.bottom_up.trunk.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, HighwayCheckpointer])
def test_official_swin_is_loaded_by_detectron2s_heuristics(model, tmp_path, checkpointer):
    """What Detectron2's unchanged training script does, and the same file name for ours."""
    state = official()
    save_atomically({"model": state}, tmp_path / "swin.pth")
    before = snapshot(model)
    checkpointer(model).load(f"{tmp_path / 'swin.pth'}?matching_heuristics=True")
    prefix = "backbone.bottom_up.trunk."
    assert changed(model, before) == {name for name in before if name.startswith(prefix)}


@pytest.mark.parametrize("classes", [2, 5])
def test_detectron2s_own_swin_detector_gives_trunk_neck_and_heads(
    small_config, detectron2s_own, tmp_path, classes
):
    """All of them; with other classes all but the classifiers."""
    detectron2s_own.model.roi_heads.num_classes = classes
    source = instantiate(detectron2s_own.model)
    save_atomically({"model": source.state_dict()}, tmp_path / "theirs.pth")
    model = instantiate(small_config.model)
    HighwayCheckpointer(model).load(str(tmp_path / "theirs.pth"))
    other = source.state_dict()
    differing = {
        name
        for name, value in model.state_dict().items()
        if ".highway." not in name
        and not torch.equal(value, other[name.replace("bottom_up.trunk.", "bottom_up.")])
    }
    assert bool(differing) == (classes != 2) and all(map(is_classifier, differing))


def is_classifier(name):
    return "cls_score" in name or "mask_head.predictor" in name


def test_whole_model_round_trip(small_config, tmp_path):
    source, target = instantiate(small_config.model), instantiate(small_config.model)
    HighwayCheckpointer(source, str(tmp_path)).save("model")
    assert changed(target, snapshot(source))
    HighwayCheckpointer(target).load(str(tmp_path / "model.pth"))
    assert not changed(target, snapshot(source))


def test_other_classes_leave_out_only_the_classifiers(small_config, tmp_path):
    source = instantiate(small_config.model)
    HighwayCheckpointer(source, str(tmp_path)).save("model")
    small_config.model.roi_heads.num_classes = 5
    target = instantiate(small_config.model)
    HighwayCheckpointer(target).load(str(tmp_path / "model.pth"))
    differing = {
        name
        for name, value in target.state_dict().items()
        if value.shape != source.state_dict()[name].shape
        or not torch.equal(value, source.state_dict()[name])
    }
    assert differing and all(map(is_classifier, differing))


def refuse(model, path, match):
    before = snapshot(model)
    with pytest.raises(UserError, match=match) as caught:
        HighwayCheckpointer(model).load(str(path))
    assert "\n" not in caught.value.line and str(path) in caught.value.line
    assert not changed(model, before)


def test_another_size_is_refused_with_both_sizes(model, tmp_path):
    save_atomically(official("swin_t"), tmp_path / "swin.pth")
    refuse(
        model, tmp_path / "swin.pth", r"swin_t \(embed_dim 96.*trunk is swin_nano.*preset to swin_t"
    )


def test_whole_model_of_another_size_is_refused(model, tmp_path):
    state = {
        f"backbone.bottom_up.trunk.{k}": v for k, v in SwinTrunk("swin_t").state_dict().items()
    }
    save_atomically({"model": state}, tmp_path / "model.pth")
    refuse(model, tmp_path / "model.pth", "holds the Swin swin_t")


def test_weights_without_the_trunk_are_refused(model, tmp_path):
    state = {name: value for name, value in model.state_dict().items() if ".trunk." not in name}
    save_atomically({"model": state}, tmp_path / "adapters.pth")
    refuse(model, tmp_path / "adapters.pth", "lacks the trunk")


def test_incomplete_trunk_is_refused(model, tmp_path):
    state = official()
    del state["layers.2.blocks.1.mlp.fc2.bias"]
    save_atomically(state, tmp_path / "swin.pth")
    refuse(model, tmp_path / "swin.pth", r"lacks 1 of .*layers.2.blocks.1.mlp.fc2.bias")


def test_missing_file_is_refused(model, tmp_path):
    refuse(model, tmp_path / "nowhere.pth", "no weights file")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", ["pkl", "pth", "pyth"])
def test_code_in_a_file_is_not_run(model, tmp_path, suffix):
    path, trace = tmp_path / f"weights.{suffix}", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"model": Payload(trace)}))
    refuse(model, path, "weights")
    assert not trace.exists()
