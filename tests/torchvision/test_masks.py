"""Masks as run lengths equal full masks, in training and in predictions."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import maskrcnn_loss, paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou, clip_boxes_to_image, roi_align

from e3va.torchvision import boxes
from e3va.torchvision.evaluate import to_coco
from e3va.torchvision.masks import (
    RunLengthMasks,
    crop_masks,
    encode_masks,
    mask_loss,
    nearest_places,
    paste_masks,
)
from e3va.torchvision.transform import UNPASTED, Transform, detect, unpasted_masks

DETECTORS = ("mask_rcnn", "cascade_mask_rcnn")
SCALES = ((32, 48, 64), 96, [0.4, 0.5, 0.6], [0.2, 0.2, 0.3])


def drawn_masks(height=30, width=40, count=3):
    generator = torch.Generator().manual_seed(7)
    return (torch.rand(count, height, width, generator=generator) > 0.6).byte()


def test_run_lengths_decode_to_the_masks_that_were_encoded():
    masks = drawn_masks()
    runs = encode_masks(masks)
    assert len(runs) == 3 and runs.shape == (3, 30, 40) and runs.to("cpu") is runs
    assert torch.equal(runs.stack(), masks) and runs[0].dtype == torch.uint8
    assert torch.equal(torch.stack(list(runs)), masks)
    assert torch.equal(runs.flip().stack(), masks.flip(2))
    assert torch.equal(runs.flip().flip().stack(), masks)
    chosen = runs[torch.tensor([True, False, True])]
    assert torch.equal(chosen.stack(), masks[[0, 2]])
    assert torch.equal(runs[torch.tensor([2, 0])].stack(), masks[[2, 0]])
    assert torch.equal(pickle.loads(pickle.dumps(runs.flip())).stack(), masks.flip(2))
    assert RunLengthMasks([], (5, 6)).stack().shape == (0, 5, 6)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 400), wanted=st.integers(1, 400))
def test_nearest_places_are_those_of_interpolate(length, wanted):
    masks = torch.randint(0, 2, (1, 1, length, 1)).float()
    expected = torch.nn.functional.interpolate(masks, size=(wanted, 1))
    assert torch.equal(masks[:, :, nearest_places(length, wanted)], expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 200), st.integers(3, 200), st.integers(0, 99), st.booleans(), st.booleans())
def test_the_transform_has_the_bits_of_torchvisions(height, width, seed, training, flipped):
    masks, image = drawn_masks(height, width), torch.rand(3, height, width)
    corners = torch.rand(3, 2) * 20
    target = {"boxes": torch.cat([corners, corners + 9], 1), "labels": torch.ones(3)}
    runs = encode_masks(masks).flip() if flipped else encode_masks(masks)
    full, answers = masks.flip(2) if flipped else masks, []
    for kind, own in ((GeneralizedRCNNTransform, full), (Transform, full), (Transform, runs)):
        torch.manual_seed(seed)
        transform = kind(*SCALES).train(training)
        answers.append(transform([image], [{**target, "masks": own}]))
    (images, (expected,)), *others = answers
    for batch, (found,) in others:
        assert torch.equal(batch.tensors, images.tensors)
        assert batch.image_sizes == images.image_sizes
        assert torch.equal(found["boxes"], expected["boxes"])
        own = found["masks"]
        own = own if isinstance(own, torch.Tensor) else own.stack()
        assert torch.equal(own, expected["masks"])


@pytest.mark.parametrize("height, width", [(2, 6000), (6000, 1), (260, 1), (1, 1)])
def test_sides_of_extreme_images_have_a_pixel_at_least(height, width):
    transform = Transform(*SCALES).eval()
    images, _ = transform([torch.rand(3, height, width)])
    scale = min(64 / min(height, width), 96 / max(height, width))
    expected = tuple(max(1, int(side * scale)) for side in (height, width))
    assert images.image_sizes == [expected] and max(expected) <= 96


def test_boxes_that_vanish_by_rounding_are_left_out():
    """Boxes as thin as float32 allows, at 480 to 511 pixels; from 512 on it is half as fine."""
    right = torch.arange(480, 511, 0.7)
    left = torch.nextafter(right, torch.zeros(()))
    thin = torch.stack([left, 1 + 0 * left, right, 9 + 0 * left], 1)
    count = len(thin)
    target = {"boxes": thin, "labels": torch.arange(count)}
    target["masks"] = encode_masks(drawn_masks(10, 600, count))
    _, (found,) = Transform(11, 3000, *SCALES[2:])([torch.rand(3, 10, 600)], [target])
    assert 0 < len(found["boxes"]) < count and (found["boxes"][:, 2] > found["boxes"][:, 0]).all()
    scaled = thin * torch.tensor([1.1, 1, 1.1, 1])
    assert found["labels"].tolist() == torch.where(scaled[:, 2] > scaled[:, 0])[0].tolist()
    expected = target["masks"].resize((11, 660))[found["labels"]].stack()
    assert torch.equal(found["masks"].stack(), expected)


def test_pasted_masks_have_the_pixels_of_torchvision():
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(20, 1, 28, 28, generator=generator)
    corners = torch.rand(20, 2, generator=generator) * 50 - 10
    own = torch.cat([corners, corners + torch.rand(20, 2, generator=generator) * 50], 1)
    own = clip_boxes_to_image(own, (48, 64))
    expected = paste_masks_in_image(small, own, (48, 64))[:, 0] >= 0.5
    assert expected.any()
    assert torch.equal(paste_masks(small, own, (48, 64)).stack(), expected.byte())
    assert len(paste_masks(small[:0], own[:0], (48, 64))) == 0


@pytest.mark.parametrize("aligned", [False, True])
def test_crops_and_loss_have_the_bits_of_torchvision(aligned):
    masks, generator = drawn_masks(), torch.Generator().manual_seed(2)
    corners = torch.rand(9, 2, generator=generator) * 20
    rois, matched = torch.cat([corners, corners + 7], 1), torch.tensor([0, 2, 2, 0, 0, 2, 2, 0, 2])
    batched = torch.cat([matched[:, None].float(), rois], 1)
    expected = roi_align(masks[:, None].float(), batched, (28, 28), aligned=aligned)[:, 0]
    for own in (masks, encode_masks(masks)):
        assert torch.equal(crop_masks(own, rois, matched, 28, aligned), expected)
    if not aligned:
        logits, labels = torch.randn(9, 3, 28, 28, generator=generator), torch.tensor([1, 2, 2])
        theirs = maskrcnn_loss(logits, [rois], [masks], [labels], [matched])
        assert torch.equal(mask_loss(logits, labels[matched], expected), theirs)


@pytest.mark.parametrize("kind", DETECTORS)
def test_losses_are_those_of_full_masks(kind, make_small, instances):
    batch = [(torch.rand(3, r["height"], r["width"]), r) for r in instances.records[:2]]
    images = [image for image, _ in batch]
    runs = [instances.read_target(record) for _, record in batch]
    full = [{**target, "masks": target["masks"].stack()} for target in runs]
    losses = []
    for targets in (runs, full):
        _, model = make_small(kind)
        torch.manual_seed(3)
        losses.append(model.train()(images, targets))
    assert losses[0].keys() == losses[1].keys() and losses[0]["loss_mask"] > 0
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name


def test_mask_rcnn_trains_as_torchvisions_heads_do(make_small, instances):
    from torchvision.models.detection.roi_heads import RoIHeads

    targets = [instances.read_target(record) for record in instances.records[:2]]
    for target in targets:
        target["masks"] = target["masks"].stack()
    images, losses = [torch.rand(3, *target["masks"].shape[1:]) for target in targets], []
    for theirs in (False, True):
        _, model = make_small("mask_rcnn")
        if theirs:
            model.roi_heads.__class__ = RoIHeads
        torch.manual_seed(3)
        losses.append(model.train()(images, targets))
    assert {k: v.item() for k, v in losses[0].items()} == {
        k: v.item() for k, v in losses[1].items()
    }


@pytest.mark.parametrize("kind", DETECTORS)
def test_detections_equal_those_with_full_masks(kind, make_small):
    _, model = make_small(kind)
    model.eval().roi_heads.score_thresh = 0.3
    model.roi_heads.detections_per_img = model.rpn._post_nms_top_n["testing"] = 20
    image = torch.rand(3, 48, 64)
    with torch.no_grad():
        (full,) = model([image])
        found = detect(model, image)
        threshold = full["scores"].median().item()
        above = detect(model, image, threshold)
        with unpasted_masks():
            (inside,) = model([image])
    assert len(full["scores"]) > 2 and full["masks"].shape[1:] == (1, 48, 64)
    assert torch.equal(found["masks"].stack(), (full["masks"][:, 0] >= 0.5).byte())
    assert to_coco(found, 1, (1, 2)) == to_coco(full, 1, (1, 2))
    kept = full["scores"] >= threshold
    assert 0 < kept.sum() < len(kept) and torch.equal(above["boxes"], full["boxes"][kept])
    assert torch.equal(above["masks"].stack(), found["masks"].stack()[kept])
    assert inside[UNPASTED].shape[2:] == (28, 28) and "masks" not in inside


def test_threads_may_share_a_model(make_small):
    _, model = make_small("mask_rcnn")
    model.eval().roi_heads.score_thresh = 0.3
    images = [torch.rand(3, 48, 40 + 8 * number) for number in range(4)]
    expected = [detect(model, image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: detect(model, images[n % 4]), range(64)))
    for number, one in enumerate(found):
        own = expected[number % 4]
        assert torch.equal(one["boxes"], own["boxes"])
        assert one["masks"].records == own["masks"].records


def test_overlaps_in_parts_are_those_of_torchvision(monkeypatch):
    corners = torch.rand(60, 2) * 50
    own = torch.cat([corners, corners + 20], 1)
    monkeypatch.setattr(boxes, "PAIRS", 7 * 41)
    for count in (0, 1, 6, 19):
        expected = box_iou(own[:count], own[19:])
        assert torch.equal(boxes.box_iou_in_parts(own[:count], own[19:]), expected)
    assert boxes.box_iou_in_parts(own[:3], own[:0]).shape == (3, 0)
