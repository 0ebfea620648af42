from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator

from .coco import dataloader

# Things as instances and stuff as label maps, as Detectron2 prepares them from COCO's panoptic
# annotations (its datasets page says how).
dataloader.train.dataset.names = "coco_2017_train_panoptic_separated"
dataloader.train.dataset.filter_empty = False
dataloader.test.dataset.names = "coco_2017_val_panoptic_separated"

# The last one needs the package panopticapi.
dataloader.evaluator = [
    L(_kind)(dataset_name="${...test.dataset.names}", output_dir="${train.output_dir}/inference")
    for _kind in (COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator)
]
