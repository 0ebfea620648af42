from detectron2 import model_zoo

from .e3va_swin import bottom_up, pixel_mean, pixel_std

# Detectron2's Cascade Mask R-CNN with FPN (box heads of two fully connected layers).
model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up = bottom_up
model.pixel_mean, model.pixel_std, model.input_format = pixel_mean, pixel_std, "RGB"
