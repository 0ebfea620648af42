from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator

from .coco import dataloader

# Instances of things and label maps of stuff. Detectron2's datasets page describes how to prepare
# them from COCO's panoptic annotations.
dataloader.train.dataset.names = "coco_2017_train_panoptic_separated"
dataloader.train.dataset.filter_empty = False
dataloader.test.dataset.names = "coco_2017_val_panoptic_separated"

# COCOPanopticEvaluator needs the package panopticapi.
dataloader.evaluator = [
    L(_kind)(dataset_name="${...test.dataset.names}", output_dir="${train.output_dir}/inference")
    for _kind in (COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator)
]
