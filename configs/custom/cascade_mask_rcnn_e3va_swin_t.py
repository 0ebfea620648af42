from detectron2.config import LazyCall as L

from e3va.detectron2.data import count_classes

from ..common.data.custom import data, dataloader
from ..common.models.cascade_mask_rcnn import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.roi_heads.num_classes = L(count_classes)(json_file="${data.train.json}")

# A short training for a few hundred images, with two evaluations.
train.max_iter = 1000
train.checkpointer.period = 200
train.eval_period = 500
