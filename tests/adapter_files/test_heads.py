"""Neck and heads under the other framework's names: what changes, stays, or has no counterpart.

The comparison with Detectron2 itself is in tests/detectron2/test_heads.py.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from e3va import UserError, get_preset
from e3va.adapter_files.heads import BACKBONE, FRAMEWORKS, framework_of, to_framework
from e3va.torchvision import ModelConfig, build_model
from e3va.torchvision.models import MASK_MODELS, MODELS

MASKS = "roi_heads.mask_predictor.mask_fcn_logits"
BOXES = "roi_heads.box_predictor.bbox_pred"


def build(kind, classes=2):
    config = ModelConfig(
        kind,
        tuple("abcde"[:classes]),
        get_preset("swin_nano"),
        "random",
        highway={"rank": 4},
        heads="light",
        size=64,
        category_ids=tuple(range(1, 1 + classes)),
    )
    return build_model(config)


def random_state(kind, classes=2):
    return {k: torch.randn(v.shape) for k, v in build(kind, classes).state_dict().items()}


def background(state):
    """The number of unused background rows at the start of each tensor that has some."""
    per_class = len(state[f"{BOXES}.weight"]) != 4 if f"{BOXES}.weight" in state else False
    rows = {MASKS: 1, BOXES: 4} if per_class else {MASKS: 1}
    return {f"{k}.{kind}": n for k, n in rows.items() for kind in ("weight", "bias")}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_translating_twice_changes_only_unused_background_entries(kind, classes):
    state = random_state(kind, classes)
    before = {name: value.clone() for name, value in state.items()}
    there, left = to_framework(state, "detectron2")
    assert not left and framework_of(there) == "detectron2" and len(there) == len(state)
    assert not any("inner_blocks" in k or "fc6" in k or "rpn.head" in k for k in there)
    back, left = to_framework(there, "torchvision")
    assert not left and back.keys() == state.keys() and framework_of(back) == "torchvision"
    unused = background(state)
    assert any(name in state for name in unused) == (kind in (*MASK_MODELS, "faster_rcnn"))
    for name, value in state.items():
        assert torch.equal(value, before[name])
        rows = unused.get(name, 0)
        assert torch.equal(back[name][rows:], value[rows:])
        assert not back[name][:rows].any()
    again, _ = to_framework(back, "detectron2")
    assert all(torch.equal(again[name], there[name]) for name in there)
    if kind in MASK_MODELS:
        assert len(there["roi_heads.mask_head.predictor.weight"]) == classes


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn"])
def test_dropped_entries_affect_no_prediction_and_no_gradient(kind):
    model = build(kind)
    state = model.state_dict()
    image = torch.rand(3, 64, 64)
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 8:40, 8:40] = 1
    target = {
        "boxes": torch.tensor([[8.0, 8, 40, 40]]),
        "labels": torch.tensor([2]),
        "masks": masks,
    }

    def run():
        torch.manual_seed(3)  # of the samples
        losses = model.train()([image], [dict(target)])
        with torch.no_grad():
            return losses, model.eval()([image])[0]

    losses, found = run()
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    unused = background(state)
    for name, rows in unused.items():
        assert not parameters[name].grad[:rows].any() and parameters[name].grad[rows:].any()
        with torch.no_grad():
            parameters[name][:rows] = 7 * torch.randn_like(parameters[name][:rows])
    other_losses, other_found = run()
    assert all(torch.equal(losses[name], other_losses[name]) for name in losses)
    assert len(found["scores"]) > 0
    assert all(torch.equal(found[name], other_found[name]) for name in found)


@given(classes=st.integers(1, 6), stage=st.sampled_from(["", ".0", ".1", ".2"]))
def test_a_class_has_the_same_score_in_both(classes, stage):
    names = [f"roi_heads.box_predictor{stage}.cls_score.{kind}" for kind in ("weight", "bias")]
    state = {names[0]: torch.randn(1 + classes, 5), names[1]: torch.randn(1 + classes)}
    mark = f"roi_heads.box_head{stage}.fc6.weight"
    there, _ = to_framework(state | {mark: torch.zeros(5, 2)}, "detectron2")
    x = torch.randn(4, 5)
    ours, theirs = (x @ s[names[0]].T + s[names[1]] for s in (state, there))
    torch.testing.assert_close(theirs[:, :classes], ours[:, 1:])  # class k is 1 + k there
    torch.testing.assert_close(theirs[:, classes], ours[:, 0])


def backbone_part(state):
    return {name: value for name, value in state.items() if name.startswith(BACKBONE)}


def test_a_state_of_the_same_framework_does_not_change():
    state = random_state("mask_rcnn") | {"own.head.weight": torch.zeros(1)}
    for same in (state, backbone_part(state), {"head.weight": torch.zeros(1)}):
        found, left = to_framework(same, "torchvision")
        assert not left and list(found) == list(same)
        assert all(found[name] is same[name] for name in same)
    assert framework_of(backbone_part(state)) is None


def test_the_backbone_part_is_the_same_in_both():
    state = random_state("cascade_mask_rcnn")
    there, _ = to_framework(state, "detectron2")
    part = backbone_part(there)
    assert part.keys() == backbone_part(state).keys()
    assert all(part[name] is state[name] for name in part)
    parts = {name.split(".")[2] for name in part}
    assert parts == {"trunk", "highway"}


def left_of(state, framework="torchvision"):
    mapped, left = to_framework(state, framework)
    assert backbone_part(mapped).keys() == backbone_part(state).keys()
    return left


def test_tensors_without_a_counterpart_are_listed():
    state, _ = to_framework(random_state("cascade_mask_rcnn", 3), "detectron2")
    assert left_of(state) == ()
    four_conv = dict(state)
    for name in ("conv1.weight", "conv1.norm.weight", "conv1.norm.running_mean"):
        four_conv[f"roi_heads.box_head.1.{name}"] = torch.zeros(1)
    assert left_of(four_conv) == tuple(k for k in four_conv if ".conv1." in k)
    one_layer = {name: value for name, value in state.items() if ".1.fc2." not in name}
    assert left_of(one_layer) == (
        "roi_heads.box_head.1.fc1.weight",
        "roi_heads.box_head.1.fc1.bias",
    )
    one_mask = dict(state)
    for kind in ("weight", "bias"):
        name = f"roi_heads.mask_head.predictor.{kind}"
        one_mask[name] = state[name][:1]
    assert left_of(one_mask) == tuple(k for k in state if "mask_head.predictor" in k)
    norm = state | {"backbone.fpn_lateral2.norm.weight": torch.zeros(1)}
    assert left_of(norm) == ("backbone.fpn_lateral2.norm.weight",)
    other = {"head.cls_score.weight": torch.zeros(1), "backbone.fpn_output3.bias": torch.zeros(1)}
    assert left_of(other) == ("head.cls_score.weight",)
    own = random_state("mask_rcnn") | {"keypoints.weight": torch.zeros(1)}
    assert left_of(own, "detectron2") == ("keypoints.weight",)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_other_heads_of_one_stage_have_no_counterpart(kind):
    state, _ = to_framework(random_state(kind), "detectron2")
    assert len(state["backbone.fpn_lateral3.weight"]) and "backbone.fpn_lateral2.weight" not in state
    deeper = state | {"head.cls_subnet.12.weight": torch.zeros(1)}
    assert left_of(deeper) == ("head.cls_subnet.12.weight",)
    # A RetinaNet with norms has the names of neither model.
    norms = {f"head.{part}_subnet.{i}.weight": torch.zeros(1) for part in ("cls", "bbox") for i in (0, 1)}
    neck = {name: value for name, value in state.items() if name.startswith("backbone.")}
    assert {*norms} <= {*left_of(neck | norms)}


def test_class_agnostic_boxes_have_no_counterpart():
    state, _ = to_framework(random_state("mask_rcnn", 3), "detectron2")
    for kind in ("weight", "bias"):
        state[f"{BOXES}.{kind}"] = state[f"{BOXES}.{kind}"][:4]
    assert left_of(state) == (f"{BOXES}.weight", f"{BOXES}.bias")


def test_a_semantic_head_without_norms_has_no_counterpart():
    state, _ = to_framework(random_state("semantic_fpn"), "detectron2")
    state = {name: value for name, value in state.items() if ".norm." not in name}
    state["sem_seg_head.p2.0.bias"] = torch.zeros(64)
    assert left_of(state) == ("sem_seg_head.p2.0.bias",)


def test_errors():
    state = random_state("semantic_fpn")
    with pytest.raises(
        UserError, match=f"framework 'keras': expected one of {', '.join(FRAMEWORKS)}"
    ):
        to_framework(state, "keras")
    there, _ = to_framework(state, "detectron2")
    with pytest.raises(UserError, match="inner_blocks.*fpn_lateral") as caught:
        to_framework(state | there, "detectron2")
    assert "\n" not in str(caught.value)
