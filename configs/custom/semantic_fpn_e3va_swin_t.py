from detectron2.config import LazyCall as L

from e3va.detectron2.labels import count_label_classes

from ..common.data.custom_labels import data, dataloader
from ..common.models.semantic_fpn import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.sem_seg_head.num_classes = L(count_label_classes)(
    images="${data.train.images}",
    labels="${data.train.labels}",
    classes="${data.classes}",
    skip_missing="${data.skip_missing}",
)

# A short training for a few hundred images, with two evaluations.
train.max_iter = 1000
train.checkpointer.period = 200
train.eval_period = 500
