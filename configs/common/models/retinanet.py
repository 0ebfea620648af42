from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from e3va.detectron2.backbone import p6_and_p7

from .e3va_swin import bottom_up, pixel_mean, pixel_std

# Detectron2's RetinaNet: p3 to p5 are computed from the backbone's levels of stride 8 to 32, p6 and
# p7 from its last level.
model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up = bottom_up
model.backbone.bottom_up.out_features = ["p1", "p2", "p3"]
model.backbone.in_features = "${.bottom_up.out_features}"
model.backbone.top_block = L(p6_and_p7)(
    preset="${..bottom_up.preset}", out_channels="${..out_channels}"
)
model.pixel_mean, model.pixel_std, model.input_format = pixel_mean, pixel_std, "RGB"
