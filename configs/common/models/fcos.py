from detectron2 import model_zoo

from .e3va_swin import bottom_up, pixel_mean, pixel_std

# Detectron2's FCOS: RetinaNet's pyramid, with p6 and p7 computed from the pyramid's p5.
model = model_zoo.get_config("common/models/fcos.py").model
model.backbone.bottom_up = bottom_up
model.backbone.bottom_up.out_features = ["p1", "p2", "p3"]
model.backbone.in_features = "${.bottom_up.out_features}"
model.backbone.top_block.in_channels = "${..out_channels}"
model.pixel_mean, model.pixel_std = pixel_mean, pixel_std
