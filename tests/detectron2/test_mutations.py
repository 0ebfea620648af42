"""Mutated COCO files in Detectron2: one clear line, or a good batch and right scores."""

import math

import detectron2.data.transforms as T
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances

from e3va import UserError
from e3va.data.masks import to_rle
from e3va.detectron2.data import DataOptions, ImageMapper, class_names, coco_dicts, coco_evaluator
from e3va.detectron2.loader import TrainLoader

from ..data.mutations import SEEDS, write_mutation


def load_batch(paths, masks, options):
    """Read the training data and return the first batch, one example of every image."""
    records = coco_dicts(*paths, training=True, masks=masks, options=options)
    mapper = ImageMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(48), T.RandomFlip()],
        image_format="RGB",
        use_instance_mask=masks,
    )
    return next(iter(TrainLoader(records, mapper, len(records))))


def score(paths, folder, masks, options):
    """Score the objects of the validation data as predictions."""
    evaluator = coco_evaluator(*paths, output_dir=str(folder), masks=masks, options=options)
    evaluator.reset()
    for record in coco_dicts(*paths, training=False, masks=masks, options=options):
        height, width = record["height"], record["width"]
        objects = [a for a in record["annotations"] if not a["iscrowd"]]
        found = Instances((height, width))
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float64).reshape(-1, 4)
        found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).float())
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.long)
        if masks:
            rles = [to_rle(a["segmentation"], height, width) for a in objects]
            decoded = [torch.from_numpy(mask_util.decode(rle)) for rle in rles]
            found.pred_masks = torch.stack([*decoded, torch.zeros(height, width)])[:-1].bool()
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_mutated_file_is_one_clear_line_or_trains_and_scores_right(tmp_path, seed, masks):
    file, images, change = write_mutation(tmp_path, seed)
    paths = str(file), str(images)
    try:
        options = DataOptions(classes=class_names(*paths))
        batch = load_batch(paths, masks, options)
    except UserError as error:
        assert "\n" not in error.line, change
        return
    for example in batch:
        instances = example["instances"]
        assert example["image"].shape == (3, *instances.image_size), change
        boxes = instances.gt_boxes.tensor
        assert len(boxes) > 0 and boxes.isfinite().all(), change
        assert (boxes[:, 2:] - boxes[:, :2] > 0).all(), change
        assert instances.gt_classes.max() < len(options.classes), change
        assert not masks or len(instances.gt_masks) == len(boxes), change
    for kind, scores in score(paths, tmp_path / "scores", masks, options).items():
        assert scores["AP"] == pytest.approx(100), (change, kind)
        per_class = [v for name, v in scores.items() if name.startswith("AP-")]
        assert all(math.isnan(v) or v == pytest.approx(100) for v in per_class), change
