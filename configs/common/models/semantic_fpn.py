from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SemanticSegmentor

from .e3va_swin import bottom_up, pixel_mean, pixel_std

# Detectron2's panoptic FPN without instances: an FPN and the semantic head on p2 to p5.
_panoptic = model_zoo.get_config("common/models/panoptic_fpn.py").model
model = L(SemanticSegmentor)(
    backbone=_panoptic.backbone,
    sem_seg_head=_panoptic.sem_seg_head,
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
)
model.backbone.bottom_up = bottom_up
model.backbone.top_block = None  # only proposals need p6
model.sem_seg_head.num_classes = 150
model.sem_seg_head.loss_weight = 1.0
