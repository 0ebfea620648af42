from ..common.data.coco_panoptic import dataloader
from ..common.models.panoptic_fpn import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_1x as lr_multiplier
from ..common.train import train
