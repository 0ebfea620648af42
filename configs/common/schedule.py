from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, PolynomialDecayParamScheduler

# COCO's schedules for a batch of 16 images: 1x is 90k iterations, about 12 epochs.
_coco = model_zoo.get_config("common/coco_schedule.py")
lr_multiplier_1x, lr_multiplier_3x = _coco.lr_multiplier_1x, _coco.lr_multiplier_3x

# For trainings of any length: a tenth of train.max_iter is warm-up, then the rate follows a cosine.
lr_multiplier_cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_factor=0.01,
    warmup_length=0.1,
    warmup_method="linear",
)

# ADE20K's schedules for a batch of 16 images, as in Swin's training (arXiv 2103.14030, appendix
# A2.3, and mmsegmentation's configs/swin): 1500 iterations of warm-up, then a straight line to zero
# ("poly" of power 1). With another train.max_iter, both parts keep their shares.
lr_multiplier_80k, lr_multiplier_160k = (
    L(WarmupParamScheduler)(
        scheduler=L(PolynomialDecayParamScheduler)(base_value=1.0, power=1.0),
        warmup_factor=1e-6,
        warmup_length=1500 / _iterations,
        warmup_method="linear",
    )
    for _iterations in (80000, 160000)
)
