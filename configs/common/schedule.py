from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

# COCO's schedules at batch 16: 1x is 90k iterations, about 12 epochs.
_coco = model_zoo.get_config("common/coco_schedule.py")
lr_multiplier_1x, lr_multiplier_3x = _coco.lr_multiplier_1x, _coco.lr_multiplier_3x

# For runs of any length: a tenth of warm-up, then a cosine. It stretches with train.max_iter.
lr_multiplier_cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.1,
    warmup_method="linear",
)
