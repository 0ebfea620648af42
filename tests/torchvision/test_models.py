"""Models: inputs, outputs, gradients, and saved files."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign

from e3va import PRESETS, UserError
from e3va.model_zoo.trunks import DEMO_FILE
from e3va.torchvision import ModelConfig, build_model, load_model, load_pretrained
from e3va.torchvision.data import read_example
from e3va.torchvision.models import (
    BOX_MODELS,
    MASK_MODELS,
    MODELS,
    default_heads,
    model_parts,
    read_trunk,
)
from e3va.torchvision.pyramid import LEVEL_NAMES
from e3va.torchvision.semantic import IGNORED, SemanticHead
from e3va.utils.atomic import save_atomically

DETECTORS = (*MASK_MODELS, *BOX_MODELS)
LOSSES = {"mask_rcnn": 5, "cascade_mask_rcnn": 9, "faster_rcnn": 4, "retinanet": 2, "fcos": 3}


def batch_of(dataset, count=2):
    return [
        list(x)
        for x in zip(*[read_example(r, dataset) for r in dataset.records[:count]], strict=True)
    ]


@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_give_finite_losses_and_gradients_outside_the_trunk(kind, make_small, instances):
    _, model = make_small(kind)
    images, targets = batch_of(instances)
    losses = model(images, targets)
    assert len(losses) == LOSSES[kind]
    sum(losses.values()).backward()
    trunk = model.backbone.bottom_up.trunk
    trunk.check_frozen(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    # The adapters' last factor starts at zero; only it gets a gradient in the first step.
    up = [p for n, p in model.named_parameters() if ".highway." in n and n.endswith("up.weight")]
    assert up and all(p.grad.abs().sum() > 0 for p in up)


@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_learn_from_images_without_objects(kind, make_small):
    _, model = make_small(kind)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    if kind in MASK_MODELS:
        empty["masks"] = torch.zeros(0, 50, 60, dtype=torch.uint8)
    losses = model([torch.rand(3, 50, 60)], [empty])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name in ("loss_mask", "bbox_regression", "bbox_ctrness"):
        assert losses.get(name, 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*MODELS])
def test_mixed_precision_trains_and_predicts(kind, dtype, make_small, request):
    dataset = request.getfixturevalue("label_maps" if kind == "semantic_fpn" else "instances")
    _, model = make_small(kind, classes=("a", "b", "c"))
    images, targets = batch_of(dataset)
    with torch.autocast("cpu", dtype):
        losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert model.eval()(images)


@settings(max_examples=8, deadline=None)
@given(kind=st.sampled_from([*MODELS]), height=st.integers(20, 90), width=st.integers(20, 90))
def test_predictions_have_the_size_of_the_image(kind, height, width):
    from ..conftest import small_config

    model = build_model(small_config(kind)).eval()
    with torch.no_grad():
        found = model([torch.rand(3, height, width)])[0]
    if kind == "semantic_fpn":
        assert found["labels"].shape == (height, width)
        assert found["labels"].min() >= 0 and found["labels"].max() <= 1
        return
    if kind in MASK_MODELS:
        assert found.pop("masks").shape == (len(found["scores"]), 1, height, width)
    assert found.keys() == {"boxes", "labels", "scores"}
    x1, y1, x2, y2 = found["boxes"].T
    assert (x1 >= 0).all() and (x2 <= width + 1e-3).all() and (y2 <= height + 1e-3).all()
    assert (x1 <= x2).all() and (y1 <= y2).all()
    assert set(found["labels"].tolist()) <= {1, 2}


def test_image_sizes_are_random_in_training_and_fixed_in_evaluation(make_small):
    config, model = make_small("mask_rcnn", size=100, max_size=1000)
    image = torch.rand(3, 50, 50)
    assert model.eval().transform([image])[0].image_sizes == [(100, 100)]
    model.train()
    sizes = {model.transform([image])[0].image_sizes[0][0] for _ in range(60)}
    assert min(sizes) == 80 and max(sizes) == 120 and len(sizes) == 9


def test_semantic_loss_is_the_mean_over_known_pixels(make_small):
    _, model = make_small("semantic_fpn", jitter=(1.0, 1.0))
    labels = torch.full((64, 64), IGNORED)
    assert model([torch.rand(3, 64, 64)], [{"labels": labels}])["loss_sem_seg"] == 0
    labels[:8, :4] = 1
    image = torch.rand(3, 64, 64)
    loss = model([image], [{"labels": labels}])["loss_sem_seg"]
    batch, _ = model.transform([image])
    logits = model.sem_seg_head(model.backbone(batch.tensors))
    full = torch.nn.Upsample(scale_factor=4, mode="bilinear")(logits)[0, :, :8, :4]
    expected = -full.log_softmax(0)[1].mean()  # written out, over the 32 known pixels
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_padding_of_a_smaller_image_has_no_class(make_small):
    """The loss of two images of different shapes is the mean of their losses by pixels."""
    _, model = make_small("semantic_fpn", jitter=(1.0, 1.0), max_size=128)
    images = [torch.rand(3, 64, 96), torch.rand(3, 96, 64)]
    targets = [{"labels": torch.randint(0, 2, i.shape[-2:])} for i in images]
    together = model(images, targets)["loss_sem_seg"]
    # Padding changes the features near the border, so the comparison is with ignored labels.
    ignored = [targets[0], {"labels": torch.full((96, 64), IGNORED)}]
    first = model(images, ignored)["loss_sem_seg"]
    ignored = [{"labels": torch.full((64, 96), IGNORED)}, targets[1]]
    second = model(images, ignored)["loss_sem_seg"]
    assert together.item() == pytest.approx((first.item() + second.item()) / 2, rel=1e-5)


def test_semantic_predictions_do_not_depend_on_the_padding(make_small):
    _, model = make_small("semantic_fpn", size=50, classes=("a", "b", "c"))
    model.eval()
    image = torch.rand(3, 100, 140)
    with torch.no_grad():
        batch, _ = model.transform([image])
        assert batch.tensors.shape[-2:] == (64, 96) and batch.image_sizes == [(50, 70)]
        logits = model.sem_seg_head(model.backbone(batch.tensors))
        logits = torch.nn.Upsample(scale_factor=4, mode="bilinear")(logits)[:, :, :50, :70]
        expected = torch.nn.Upsample(size=(100, 140), mode="bilinear")(logits)[0].argmax(0)
        assert expected.unique().numel() > 1
        assert torch.equal(model([image])[0]["labels"], expected)


def test_semantic_head_has_one_convolution_for_each_doubling():
    head = SemanticHead(8, 3, channels=16)
    counts = [sum(isinstance(m, torch.nn.Conv2d) for m in level) for level in head.levels]
    assert counts == [1, 1, 2, 3]
    features = {f"p{i + 2}": torch.rand(2, 8, 64 >> i, 32 >> i) for i in range(4)}
    assert head(features).shape == (2, 3, 64, 32)


def test_config_survives_conversion_to_plain_data(make_small):
    config, _ = make_small("mask_rcnn")
    plain = config.to_dict()
    assert ModelConfig.from_dict(plain, "x") == config
    del plain["classes"]
    with pytest.raises(UserError, match="m.pth: its model description cannot be read"):
        ModelConfig.from_dict(plain, "m.pth")
    with pytest.raises(UserError, match="cannot be read.*surprise"):
        ModelConfig.from_dict({**config.to_dict(), "surprise": 1}, "m.pth")


@pytest.mark.parametrize("kind", ["cascade_mask_rcnn", *BOX_MODELS])
def test_saved_models_come_back_equal(kind, make_small, tmp_path):
    config, model = make_small(kind)
    path = tmp_path / "model.pth"
    save_atomically({"model": model.state_dict(), "config": config.to_dict()}, path)
    loaded, loaded_config = load_model(path)
    assert loaded_config == config and not loaded.training
    image = torch.rand(3, 70, 70)
    with torch.no_grad():
        for a, b in zip(
            model.eval()([image])[0].values(), loaded([image])[0].values(), strict=True
        ):
            assert torch.equal(a, b)
    save_atomically({"model": model.state_dict()}, path)
    with pytest.raises(UserError, match="not a model of e3va train"):
        load_model(path)
    other = replace(config, classes=("a", "b", "c"), category_ids=(1, 2, 3))
    save_atomically({"model": model.state_dict(), "config": other.to_dict()}, path)
    count = {"cascade_mask_rcnn": 8, "faster_rcnn": 4}.get(kind, 2)
    with pytest.raises(UserError, match=f"model.pth .* {count} of another shape"):
        load_model(path)


def test_recipes_start_from_the_same_neck_and_heads(make_small, instances):
    recipes = ("e3va_chain", "frozen", "full")
    states = [make_small("mask_rcnn", highway=r)[1].state_dict() for r in recipes]
    shared = [k for k in states[0] if ".bottom_up." not in k]
    assert len(shared) > 20
    assert all(torch.equal(states[0][k], other[k]) for k in shared for other in states[1:])


def test_unknown_settings_name_the_known_ones(make_small):
    config, _ = make_small("mask_rcnn")
    with pytest.raises(UserError, match="model 'yolo': expected one of mask_rcnn, cascade_mask_r"):
        build_model(replace(config, model="yolo"))
    with pytest.raises(UserError, match="heads 'huge': expected one of standard, light"):
        build_model(replace(config, heads="huge"))


def test_demonstration_trunk_is_small_and_complete(make_small):
    assert DEMO_FILE.stat().st_size < 10e6
    state, preset, _ = read_trunk("demo")
    assert preset == replace(PRESETS["swin_mini"], pretrain_size=0)
    assert sum(t.numel() for t in state.values()) == 6_906_092
    assert all(t.isfinite().all() for t in state.values())
    config, _ = make_small("mask_rcnn")
    model = build_model(replace(config, preset=preset))
    load_pretrained(model, "demo")
    own = model.backbone.bottom_up.trunk.state_dict()
    assert all(torch.equal(own[key], value.float()) for key, value in state.items())
    with pytest.raises(UserError, match="swin_mini"):
        load_pretrained(build_model(config), "demo")  # a trunk of another size


def test_default_heads_depend_on_the_size_of_the_trunk():
    assert default_heads(PRESETS["swin_mini"]) == "light"
    assert default_heads(PRESETS["swin_t"]) == "standard"


def test_parts_cover_the_whole_model(make_small):
    for kind in MODELS:
        _, model = make_small(kind)
        parts = model_parts(model)
        counted = sum(p.numel() for part in parts.values() for p in part.parameters())
        assert counted == sum(p.numel() for p in model.parameters())
        shares = [any(p.requires_grad for p in part.parameters()) for part in parts.values()]
        assert shares == [False, True, True, True]


@pytest.mark.skipif(importlib.util.find_spec("detectron2") is None, reason="no Detectron2")
def test_semantic_head_equals_detectron2():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

    ours = SemanticHead(8, 3, channels=32)
    shapes = {f"p{i + 2}": ShapeSpec(channels=8, stride=4 << i) for i in range(4)}
    theirs = SemSegFPNHead(
        shapes, num_classes=3, conv_dims=32, common_stride=4, norm="GN", ignore_value=255
    )
    state = theirs.state_dict()
    for i, level in enumerate(ours.levels):
        step = 2 if i else 1  # an upsampling stands between their convolutions
        convolutions = [m for m in level if isinstance(m, torch.nn.Conv2d)]
        norms = [m for m in level if isinstance(m, torch.nn.GroupNorm)]
        for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
            name = f"p{i + 2}.{number * step}"
            state[f"{name}.weight"] = convolution.weight
            state[f"{name}.norm.weight"], state[f"{name}.norm.bias"] = norm.weight, norm.bias
    state["predictor.weight"], state["predictor.bias"] = ours.predictor.parameters()
    theirs.load_state_dict({k: v.detach() for k, v in state.items()})
    features = {f"p{i + 2}": torch.rand(2, 8, 64 >> i, 48 >> i) for i in range(4)}
    torch.testing.assert_close(ours(features), theirs.layers(features))


def test_strides_do_not_depend_on_the_first_images(make_small):
    """torchvision's pooler infers strides from its first images; 65 pixels are padded to 96."""
    _, one = make_small("mask_rcnn")
    _, other = make_small("mask_rcnn")
    with torch.no_grad():
        one.eval()([torch.rand(3, 65, 65)])
        image = torch.rand(3, 64, 96)
        found, expected = one([image])[0], other.eval()([image])[0]
        assert len(expected["boxes"]) and torch.equal(found["masks"], expected["masks"])
    theirs = MultiScaleRoIAlign([*LEVEL_NAMES], 7, 2)
    features = other.backbone(torch.rand(1, 3, 64, 96))
    boxes = [torch.tensor([[3.0, 5, 40, 44], [0, 0, 96, 64]])]
    pooled = theirs(features, boxes, [(64, 96)])  # no padding: it reads them right
    assert torch.equal(other.roi_heads.box_roi_pool(features, boxes, [(64, 96)]), pooled)
