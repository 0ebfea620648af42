"""COCO-format data of a user's own: dataset dicts, mapper, evaluator."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from e3va import UserError
from e3va.detectron2.data import ImageMapper, class_names, coco_dicts, coco_evaluator, count_classes
from e3va.detectron2.loader import TrainLoader
from e3va.detectron2.masks import RLEMasks


def mapper(training=True):
    return ImageMapper(
        is_train=training,
        augmentations=[T.ResizeShortestEdge(80)],
        image_format="RGB",
        use_instance_mask=True,
    )


def load(drawn, **settings):
    return coco_dicts(str(drawn.json), str(drawn.images), **settings)


def test_dicts_equal_the_annotation_file(drawn):
    records = load(drawn, training=True)
    assert class_names(str(drawn.json)) == ["red", "blue"] and count_classes(str(drawn.json)) == 2
    assert len(records) == 6
    source = drawn.data["annotations"]
    for record, first in zip(records, range(0, 12, 2), strict=True):
        assert record["file_name"] == str(drawn.images / f"{record['image_id']}.png")
        for annotation, given in zip(record["annotations"], source[first:], strict=False):
            assert annotation["bbox"] == given["bbox"]
            assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
            assert annotation["category_id"] == {3: 0, 7: 1}[given["category_id"]]


def test_polygons_and_rle_both_become_masks(drawn):
    """The first image keeps polygons; the others get RLE, compressed and not."""
    for annotation in drawn.data["annotations"][2:4]:
        image = drawn.data["images"][1]
        size = [image["height"], image["width"]]
        rle = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], *size))
        annotation["segmentation"] = {"size": size, "counts": rle["counts"].decode()}
    image = drawn.data["images"][2]
    x, y, width, height = drawn.data["annotations"][4]["bbox"]
    mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    mask[y : y + height, x : x + width] = 1
    flat = mask.flatten(order="F")
    runs = np.diff(np.flatnonzero(np.concatenate(([1], flat[1:] != flat[:-1], [1]))))
    counts = ([] if flat[0] == 0 else [0]) + runs.tolist()
    drawn.data["annotations"][4]["segmentation"] = {"size": list(mask.shape), "counts": counts}
    drawn.save()
    examples = [mapper()(record) for record in load(drawn, training=True)[:3]]
    kinds = [type(example["instances"].gt_masks) for example in examples]
    assert kinds == [PolygonMasks, RLEMasks, RLEMasks]
    for example in examples:  # every mask is its rectangle
        boxes = example["instances"].gt_boxes
        assert len(boxes) == 2
        for index, area in enumerate(boxes.area()):
            masks = example["instances"].gt_masks
            bits = masks.tensor[index].sum() if isinstance(masks, BitMasks) else masks.area()[index]
            assert float(bits) == pytest.approx(float(area), rel=0.03)


def broken(drawn, kind):
    path = drawn.images / "1.png"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "no image":
        path.write_text("not an image")
    elif kind == "size":
        drawn.data["images"][0]["width"] += 5
        drawn.save()


@pytest.mark.parametrize(
    ("kind", "message", "workers"),
    [
        ("truncated", "cannot be read", 0),
        ("no image", "cannot be read: cannot identify", 0),
        ("size", "is 96×80, the annotations say 101×80", 0),
        ("size", "is 96×80, the annotations say 101×80", 1),
    ],
)
def test_unusable_image_is_one_clear_line(drawn, kind, message, workers):
    broken(drawn, kind)
    records = load(drawn, training=True)[:1]
    loader = TrainLoader(records, mapper(), 1, num_workers=workers)
    with pytest.raises(UserError) as caught:
        next(iter(loader))
    line = caught.value.line
    assert line.startswith(f"image {drawn.images / '1.png'} ") and message in line
    assert "Traceback" not in line and "\n" not in line


def test_missing_image_is_one_clear_line(drawn):
    records = load(drawn, training=True)
    (drawn.images / "1.png").unlink()
    with pytest.raises(UserError, match=r"1.png cannot be read"):
        mapper()(records[0])


def perfect(record, classes):
    """Predictions that are the record's annotations."""
    instances = Instances((record["height"], record["width"]))
    boxes = [
        BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        for a in record["annotations"]
    ]
    masks = [
        mask_util.decode(
            mask_util.merge(mask_util.frPyObjects(a["segmentation"], *instances.image_size))
        )
        for a in record["annotations"]
    ]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
    instances.scores = torch.ones(len(boxes))
    instances.pred_classes = torch.tensor(
        [classes[a["category_id"]] for a in record["annotations"]]
    )
    return instances


def evaluate(drawn, folder, classes):
    evaluator = coco_evaluator(str(drawn.json), str(drawn.images), output_dir=str(folder))
    evaluator.reset()
    for record in load(drawn, training=False):
        evaluator.process([record], [{"instances": perfect(record, classes)}])
    return evaluator.evaluate()


def test_perfect_predictions_score_100_and_swapped_classes_0(drawn, tmp_path):
    right = evaluate(drawn, tmp_path / "right", {0: 0, 1: 1})
    assert right["bbox"]["AP"] == right["segm"]["AP"] == 100
    results = json.loads((tmp_path / "right" / "coco_instances_results.json").read_text())
    assert {result["category_id"] for result in results} == {3, 7}
    wrong = evaluate(drawn, tmp_path / "wrong", {0: 1, 1: 0})
    assert wrong["bbox"]["AP"] == wrong["segm"]["AP"] == 0


def test_evaluation_leaves_out_what_training_drops(drawn, tmp_path):
    """A box outside its image can never be found; counted, it would cap recall."""
    extra = {**drawn.data["annotations"][0], "id": 99, "bbox": [500, 500, 10, 10]}
    drawn.data["annotations"].append(extra)
    drawn.save()
    assert evaluate(drawn, tmp_path, {0: 0, 1: 1})["bbox"]["AP"] == 100
    truth = json.loads((tmp_path / "ground_truth.json").read_text())
    assert 99 not in {annotation["id"] for annotation in truth["annotations"]}


def test_boxes_are_enough_for_models_without_masks(drawn, tmp_path):
    kept = ("image_id", "category_id", "bbox")
    drawn.data["annotations"] = [{k: a[k] for k in kept} for a in drawn.data["annotations"]]
    drawn.save()
    with pytest.raises(UserError, match="'segmentation'"):
        load(drawn, training=True)
    records = load(drawn, training=True, masks=False)
    assert "segmentation" not in records[0]["annotations"][0]
    evaluator = coco_evaluator(
        str(drawn.json), str(drawn.images), output_dir=str(tmp_path), masks=False
    )
    evaluator.reset()
    for record in records:
        instances = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).float()
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == 100 and "segm" not in results


def test_paths_that_were_not_given_are_named():
    with pytest.raises(UserError, match="data.train.json is not given"):
        coco_dicts("", "", training=True)
    with pytest.raises(UserError, match="data.val.images is not given"):
        coco_dicts("some.json", "", training=False)
