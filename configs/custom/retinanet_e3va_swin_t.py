from detectron2.config import LazyCall as L

from e3va.detectron2.data import count_candidates, count_classes

from ..common.data.custom import data, dataloader
from ..common.models.retinanet import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

# Boxes only: segmentations in the annotations are not read.
for _node in (dataloader.train.dataset, dataloader.test.dataset, dataloader.evaluator):
    _node.masks = False
dataloader.train.mapper.use_instance_mask = False

model.num_classes = L(count_classes)(
    json_file="${data.train.json}", image_root="${data.train.images}"
)
model.max_detections_per_image = "${data.max_detections}"
model.test_topk_candidates = L(count_candidates)(max_detections="${data.max_detections}")

# A short training for a few hundred images, with two evaluations.
train.max_iter = 1000
train.checkpointer.period = 200
train.eval_period = 500
