"""Masks that take little memory have the numbers of Detectron2's own."""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from e3va.detectron2.data import ImageMapper
from e3va.detectron2.masks import PastedMasks, RLEMasks, masks_on_demand

from .test_lean import make_batch, small_cfg

SIZE = (37, 53)


def random_masks(count=6):
    """Blobs [N, H, W] bool; the last one is empty, the one before it fills the image."""
    noise = torch.rand(count, 1, 7, 9, generator=torch.Generator().manual_seed(1))
    masks = torch.nn.functional.interpolate(noise, SIZE, mode="bilinear")[:, 0] > 0.55
    masks[-2], masks[-1] = True, False
    return masks


def encode(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def both_forms():
    masks = random_masks()
    return BitMasks(masks), RLEMasks([encode(mask) for mask in masks], SIZE)


def random_model(kind):
    """A detector that finds many objects."""
    torch.manual_seed(0)
    cfg = small_cfg(kind)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if "bbox_pred" in name or "mask_head.predictor" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def predict(model, size=(101, 150)):
    height, width = size
    image = make_batch()[0]["image"]
    return model([{"image": image, "height": height, "width": width}])[0]


@pytest.mark.parametrize("kind", ["mask", "cascade", "panoptic"])
def test_predictions_on_demand_are_detectron2s(kind):
    model = random_model(kind)
    expected = predict(model)
    with masks_on_demand(model):
        actual = predict(model)
    wanted, found = expected["instances"], actual["instances"]
    assert len(wanted) > 10 and wanted.pred_masks.any()
    assert isinstance(found.pred_masks, PastedMasks)
    assert np.array_equal(np.asarray(found.pred_masks), wanted.pred_masks.numpy())
    as_json = [json.dumps(instances_to_coco_json(r.to("cpu"), 3)) for r in (wanted, found)]
    assert as_json[0] == as_json[1]
    if kind == "panoptic":
        assert torch.equal(actual["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert actual["panoptic_seg"][1] == expected["panoptic_seg"][1]
    # Outside of the context, outputs are as usual.
    assert torch.equal(predict(model)["instances"].pred_masks, wanted.pred_masks)


@pytest.mark.parametrize("kind", ["boxes", "retinanet", "keypoint"])
def test_models_without_masks_do_not_change(kind):
    model = random_model(kind)
    expected = predict(model)["instances"]
    with masks_on_demand(model):
        actual = predict(model)["instances"]
    assert actual.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_pasted_masks_are_selected_as_tensors_are():
    boxes = torch.tensor([[2.0, 3.0, 30.0, 20.0], [10.0, 5.0, 50.0, 36.0], [0.0, 0.0, 9.0, 9.0]])
    masks = PastedMasks(torch.ones(3, 28, 28), boxes, SIZE)
    everything = torch.from_numpy(np.asarray(masks))
    assert everything.shape == (3, *SIZE) and everything[0].sum() == 28 * 17
    for item in (1, -1, torch.tensor(2)):
        assert torch.equal(masks[item], everything[item])
    for item in (slice(1, None), [2, 0], torch.tensor([1, 1]), torch.tensor([True, False, True])):
        assert isinstance(masks[item], PastedMasks)
        assert np.array_equal(np.asarray(masks[item]), everything[item])
    with pytest.raises(IndexError):
        masks[3]
    assert len(list(masks)) == 3 and masks.to(torch.float32)[0].dtype == torch.float32
    assert np.asarray(masks[:0]).shape == (0, *SIZE)


def test_240_perfect_predictions_of_one_image_score_100(tmp_path):
    corners = torch.tensor([[x, y] for y in range(0, 480, 40) for x in range(0, 800, 40)]).float()
    boxes = torch.cat([corners, corners + 20], 1)
    found = Instances((480, 800), pred_boxes=Boxes(boxes), scores=torch.linspace(0.5, 1, 240))
    found.pred_classes = torch.zeros(240).long()
    found.pred_masks = PastedMasks(torch.ones(240, 28, 28), boxes, (480, 800))
    annotations = [
        {
            "id": number + 1,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 0,
            "area": 400,
            "bbox": [x, y, 20, 20],
            "segmentation": [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]],
        }
        for number, (x, y) in enumerate(corners.tolist())
    ]
    image = {"id": 1, "file_name": "a.png", "width": 800, "height": 480}
    categories = [{"id": 1, "name": "thing"}]
    content = {"info": {}, "images": [image], "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    scores = {}
    for limit in (100, 300):
        name = f"240 objects, {tmp_path}, {limit}"
        MetadataCatalog.get(name).set(
            json_file=str(tmp_path / "a.json"), thing_dataset_id_to_contiguous_id={1: 0}
        )
        evaluator = COCOEvaluator(
            name, ("bbox", "segm"), max_dets_per_image=limit, use_fast_impl=False
        )
        evaluator.reset()
        evaluator.process([{"image_id": 1}], [{"instances": found}])
        results = evaluator.evaluate()
        scores[limit] = results["bbox"]["AP"], results["segm"]["AP"]
    assert scores[300] == (100, 100)
    assert max(scores[100]) < 50  # Detectron2's usual limit


def test_annotated_masks_have_the_numbers_of_bitmasks():
    bits, rles = both_forms()
    assert len(rles) == len(bits) and rles.image_size == bits.image_size
    assert torch.equal(rles.tensor, bits.tensor)
    assert all(torch.equal(a, b) for a, b in zip(rles, bits, strict=True))
    assert torch.equal(rles.nonempty(), bits.nonempty()) and rles.nonempty().sum() == 5
    assert torch.equal(rles.get_bounding_boxes().tensor, bits.get_bounding_boxes().tensor)
    items = (2, -1, slice(1, 4), [3, 3, 0], torch.tensor([5, 1]), bits.nonempty(), slice(0, 0))
    for item in items:
        chosen = bits.tensor[[item]] if isinstance(item, int) else bits.tensor[item]
        assert isinstance(rles[item], RLEMasks) and torch.equal(rles[item].tensor, chosen)
    assert torch.equal(
        RLEMasks.cat([rles[:2], rles[1:]]).tensor, torch.cat([bits.tensor[:2], bits.tensor[1:]])
    )
    assert rles.to("meta").device.type == "meta" and rles.device.type == "cpu"
    with pytest.raises(IndexError):
        rles[6]


def test_cropped_targets_and_the_mask_loss_are_those_of_bitmasks():
    generator = torch.Generator().manual_seed(2)
    chosen = torch.randint(0, 6, (40,), generator=generator)  # several boxes of one mask
    corners = torch.rand(40, 2, generator=generator) * 30 - 3  # partly outside of the image
    boxes = torch.cat([corners, corners + 1 + torch.rand(40, 2, generator=generator) * 40], 1)
    logits = torch.randn(40, 3, 14, 14, generator=generator)
    losses, targets = [], []
    for masks in both_forms():
        instances = Instances(SIZE, gt_masks=masks[chosen], proposal_boxes=Boxes(boxes))
        instances.gt_classes = chosen % 3
        targets.append(instances.gt_masks.crop_and_resize(boxes, 14))
        with EventStorage():
            losses.append(mask_rcnn_loss(logits, [instances]))
    assert torch.equal(targets[0], targets[1]) and targets[0].any()
    assert torch.equal(losses[0], losses[1])
    empty = both_forms()[1][:0].crop_and_resize(boxes[:0], 14)
    assert empty.shape == (0, 14, 14) and empty.dtype == torch.bool


def test_a_step_has_the_losses_and_gradients_of_bitmasks():
    results = []
    for compact in (False, True):
        torch.manual_seed(0)
        model = build_model(small_cfg("cascade")).train()
        batch = make_batch()
        for example in batch if compact else ():
            instances = example["instances"]
            rles = [encode(mask) for mask in instances.gt_masks]
            instances.gt_masks = RLEMasks(rles, instances.image_size)
        torch.manual_seed(5)
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((list(losses.values()), gradients))
    for expected, actual in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))


def record_with_masks(folder):
    """A picture of 53×37 with two RLEs, a polygon and a crowd."""
    Image.new("RGB", SIZE[::-1], (90, 120, 30)).save(folder / "a.png")
    masks = [encode(mask) for mask in random_masks()[:3]]
    polygon = [[4.0, 5.0, 30.5, 6.0, 20.0, 33.0]]
    annotations = [
        {"segmentation": s, "category_id": k, "iscrowd": int(k == 2)}
        for k, s in enumerate([*masks, polygon])
    ]
    for annotation in annotations:
        annotation.update(bbox=[1, 2, 51, 36], bbox_mode=BoxMode.XYXY_ABS)
    entries = {"file_name": str(folder / "a.png"), "height": SIZE[0], "width": SIZE[1]}
    return {**entries, "annotations": annotations}


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [T.ResizeShortestEdge(60), T.RandomFlip(1.0)],
        [T.RandomCrop("absolute", (20, 25))],
        [T.RandomRotation([30, 30], expand=False)],
    ],
)
@pytest.mark.parametrize("recompute_boxes", [False, True])
def test_the_mapper_gives_the_bitmasks_of_detectron2s(tmp_path, changes, recompute_boxes):
    record = record_with_masks(tmp_path)
    if any(isinstance(change, T.RandomCrop) for change in changes):
        del record["annotations"][3]  # polygons are cropped with shapely, which is optional
    found = []
    for kind in (DatasetMapper, ImageMapper):
        mapper = kind(
            is_train=True,
            augmentations=changes,
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
            recompute_boxes=recompute_boxes,
        )
        np.random.seed(4)
        found.append(mapper(copy.deepcopy(record))["instances"])
    wanted, actual = found
    assert isinstance(actual.gt_masks, RLEMasks) and 1 <= len(actual) <= 3
    assert torch.equal(actual.gt_masks.tensor, wanted.gt_masks.tensor)
    assert torch.equal(actual.gt_boxes.tensor, wanted.gt_boxes.tensor)
    assert torch.equal(actual.gt_classes, wanted.gt_classes)
    assert actual.get_fields().keys() == wanted.get_fields().keys()
