"""Models that find boxes only: levels, anchors, labels, limits, and training."""

from dataclasses import replace

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from e3va import UserError, load_adapter
from e3va.adapter_files.files import read_adapter
from e3va.torchvision import ModelConfig, load_model, load_pretrained
from e3va.torchvision.description import recognize
from e3va.torchvision.info import describe_file
from e3va.torchvision.models import BOX_MODELS, HEADS, MASK_MODELS, limit_detections
from e3va.torchvision.one_stage import fcos_anchors, retinanet_anchors

from .test_models import batch_of

DETECTORS = (*MASK_MODELS, *BOX_MODELS)


@pytest.mark.parametrize("kind", BOX_MODELS)
def test_a_step_changes_all_but_the_trunk(kind, make_small, instances):
    _, model = make_small(kind)
    images, targets = batch_of(instances)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-3, eps=1e-30)  # some gradients are tiny
    for _ in range(2):  # the other factors of the adapters get a gradient in the second step
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    after = model.state_dict()
    assert after.keys() == before.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if ".trunk." in name}


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_one_stage_models_have_the_levels_of_strides_8_to_128(kind, make_small, monkeypatch):
    # The pyramid gets as many channels as the backbone's last level, as torchvision expects of p5.
    monkeypatch.setitem(HEADS, "light", replace(HEADS["light"], channels=128))
    _, model = make_small(kind)
    bottom_up, images = model.backbone.bottom_up, torch.rand(1, 3, 96, 160)
    assert [stage.out_norm is not None for stage in bottom_up.highway.stages] == [0, 1, 1, 1]
    levels = model.backbone(images)
    assert {name: tuple(level.shape[2:]) for name, level in levels.items()} == {
        "p3": (12, 20),
        "p4": (6, 10),
        "p5": (3, 5),
        "p6": (2, 3),
        "p7": (1, 2),
    }
    assert bottom_up.trunk.preset.dims[-1] == levels["p5"].shape[1]
    source = bottom_up(images)["p3"] if kind == "retinanet" else levels["p5"]
    assert torch.equal(levels["p6"], model.backbone.fpn.extra_blocks.p6(source))


def anchors_of(generator):
    """The anchors of p3 to p7 for an image of 96×160, whose p7 covers 128×256."""
    levels = [torch.zeros(1, 1, -(-96 // s), -(-160 // s)) for s in (8, 16, 32, 64, 128)]
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    (anchors,) = generator(images, [level.bfloat16() for level in levels])
    assert anchors.dtype == torch.float32
    count = len(anchors) // sum(level[0].numel() for level in levels)
    return anchors.split([level[0].numel() * count for level in levels]), count


def test_anchors_lie_on_the_features():
    anchors, count = anchors_of(retinanet_anchors(32))
    assert count == 9
    third = 2 ** (1 / 3)
    for level, (boxes, stride) in enumerate(zip(anchors, (8, 16, 32, 64, 128), strict=True)):
        sides = boxes[:9, 2:] - boxes[:9, :2]
        size = 32 * 2**level * torch.tensor([1, third, third**2]).repeat_interleave(3)
        torch.testing.assert_close(sides.prod(1).sqrt(), size)
        torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2] * 3))
        centers = (boxes[::9, 2:] + boxes[::9, :2]) / 2
        assert torch.equal(centers[:2], torch.tensor([[0.0, 0], [stride, 0]]))
    anchors, count = anchors_of(fcos_anchors())
    assert count == 1
    for boxes, stride in zip(anchors, (8, 16, 32, 64, 128), strict=True):
        expected = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]]) * stride
        assert torch.equal(boxes[:2], expected)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_the_first_class_has_label_1(kind, make_small):
    _, model = make_small(kind, classes=("a", "b", "c"), jitter=(1.0, 1.0))
    head = model.head.classification_head.cls_logits
    with torch.no_grad():
        head.bias.copy_(torch.tensor([-9.0, 9, -9]).repeat(len(head.bias) // 3))
        images = [torch.rand(3, 64, 64)]
        found = model.eval()(images)[0]
        assert len(found["labels"]) and set(found["labels"].tolist()) == {2}
        box = torch.tensor([[8.0, 8, 56, 56]])
        losses = [
            model.train()(images, [{"boxes": box, "labels": torch.tensor([label])}])
            for label in (1, 2, 3)
        ]
    first, second, third = (loss["classification"] for loss in losses)
    assert second < first and second < third


@pytest.mark.parametrize("kind", DETECTORS)
def test_detections_are_limited(kind, make_small):
    images = [torch.rand(3, 64, 64)]
    config, model = make_small(kind, detections=7)
    if kind in ("retinanet", "fcos"):
        torch.nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    with torch.no_grad():
        assert len(model.eval()(images)[0]["scores"]) == 7
        limit_detections(model, 12)
        assert len(model(images)[0]["scores"]) == 12
    assert ModelConfig.from_dict(config.to_dict(), "x").detections == 7
    limit_detections(model, 3000)
    if kind in ("retinanet", "fcos"):
        assert model.topk_candidates == 3000
    else:
        assert model.rpn.post_nms_top_n() == model.rpn.pre_nms_top_n() == 3000
        model.train()
        assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (2000, 1000)


def test_wrong_limits_of_detections_are_refused(make_small):
    config, model = make_small("fcos")
    data = config.to_dict()
    assert data.pop("detections") == 100
    assert ModelConfig.from_dict(data, "older.pth") == config
    for count in (0, 10001, 2.0, True, "7", None):
        for refused in (
            lambda count=count: replace(config, detections=count),
            lambda count=count: limit_detections(model, count),
            lambda count=count: ModelConfig.from_dict({**data, "detections": count}, "m.pth"),
        ):
            with pytest.raises(UserError, match=f"detections {count!r}.*1 to 10000"):
                refused()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOX_MODELS)
def test_box_models_learn_a_picture_by_heart(kind, make_small, instances):
    _, model = make_small(kind, jitter=(1.0, 1.0))
    (image,), (target,) = batch_of(instances, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)

    def quality():
        """The smallest IoU of the two objects with one of the two best boxes of their class."""
        with torch.no_grad():
            (found,) = model.eval()([image])
        model.train()
        best = found["scores"].topk(min(2, len(found["scores"]))).indices
        overlap = box_iou(target["boxes"], found["boxes"][best])
        overlap *= target["labels"][:, None] == found["labels"][best]
        return overlap.amax(1).min() if len(best) else 0

    assert quality() < 0.3
    for _ in range(200):
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        optimizer.step()
    assert quality() > 0.6


@pytest.mark.parametrize("kind", BOX_MODELS)
def test_an_adapter_comes_back_as_the_whole_model(kind, make_trained, tmp_path):
    config, model = make_trained(kind, "fruit")
    loaded, again = load_model(tmp_path / "fruit")
    assert (again.model, again.classes, again.detections) == (kind, config.classes, 100)
    expected, found = model.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    text = "\n".join(describe_file(tmp_path / "fruit" / "model.pth"))
    assert kind in text and "red, blue" in text and "detections" in text
    assert recognize(read_adapter(tmp_path / "fruit")[0]) == (kind, "light")


@pytest.mark.parametrize("kind", BOX_MODELS)
def test_the_highway_of_a_mask_model_starts_a_box_model_and_back(
    kind, make_trained, make_small, pretrained, tmp_path
):
    make_trained("mask_rcnn", "mask")
    make_trained(kind, "boxes")
    for folder, other in (("mask", kind), ("boxes", "mask_rcnn")):
        _, model = make_small(other)
        load_pretrained(model, str(pretrained))
        load_adapter(model, tmp_path / folder, backbone_only=True)
        highway = "backbone.bottom_up.highway."
        state, own = read_adapter(tmp_path / folder)[0], model.state_dict()
        mine = {name for name in own if name.startswith(highway)}
        theirs = {name for name in state if name.startswith(highway)}
        assert all(torch.equal(own[name], state[name]) for name in mine & theirs)
        norm = {f"{highway}stages.0.out_norm.{part}" for part in ("weight", "bias")}
        assert mine ^ theirs == (set() if kind == "faster_rcnn" else norm)
