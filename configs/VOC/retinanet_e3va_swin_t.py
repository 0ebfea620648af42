from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..common.data.voc import dataloader
from ..common.models.retinanet import model
from ..common.optim import optimizer
from ..common.train import train

model.num_classes = 20

# The schedule of Detectron2's own config for VOC 2007+2012
# (PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml): 17.4 epochs with a batch of 16 images.
train.max_iter = 18000
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[12000, 16000, 18000]),
    warmup_factor=0.001,
    warmup_length=100 / 18000,
    warmup_method="linear",
)
