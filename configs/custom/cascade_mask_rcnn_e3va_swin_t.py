from detectron2.config import LazyCall as L

from e3va.detectron2.data import count_candidates, count_classes

from ..common.data.custom import data, dataloader
from ..common.models.cascade_mask_rcnn import model
from ..common.optim import optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.roi_heads.num_classes = L(count_classes)(
    json_file="${data.train.json}", image_root="${data.train.images}"
)
for _predictor in model.roi_heads.box_predictors:
    _predictor.test_topk_per_image = "${data.max_detections}"
# Detectron2's numbers for training and for predictions; more detections need more proposals.
_candidates = L(count_candidates)(max_detections="${data.max_detections}")
model.proposal_generator.pre_nms_topk = [2000, _candidates]
model.proposal_generator.post_nms_topk = [1000, _candidates]

# A short training for a few hundred images, with two evaluations.
train.max_iter = 1000
train.checkpointer.period = 200
train.eval_period = 500
