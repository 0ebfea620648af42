from detectron2.config import LazyCall as L
from detectron2.evaluation import PascalVOCDetectionEvaluator

from .coco import dataloader

# Splits in Detectron2's catalog, in VOC2007/ and VOC2012/ below DETECTRON2_DATASETS.
dataloader.train.dataset.names = ["voc_2007_trainval", "voc_2012_trainval"]
dataloader.train.mapper.use_instance_mask = False
dataloader.test.dataset.names = "voc_2007_test"

# AP over IoU 0.5 to 0.95, AP50 and AP75, each with VOC 2007's eleven points. AP50 is usually called
# mAP on VOC.
dataloader.evaluator = L(PascalVOCDetectionEvaluator)(dataset_name="${..test.dataset.names}")
