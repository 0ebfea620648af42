from ..common.data.coco import dataloader
from ..common.models.faster_rcnn import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_1x as lr_multiplier
from ..common.train import train

dataloader.train.mapper.use_instance_mask = False
