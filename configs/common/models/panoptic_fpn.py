from detectron2 import model_zoo

from .e3va_swin import bottom_up, pixel_mean, pixel_std

# Detectron2's panoptic FPN: Mask R-CNN and a semantic head on the same pyramid.
model = model_zoo.get_config("common/models/panoptic_fpn.py").model
model.backbone.bottom_up = bottom_up
model.pixel_mean, model.pixel_std, model.input_format = pixel_mean, pixel_std, "RGB"
