from ..common.schedule import lr_multiplier_3x as lr_multiplier
from .cascade_mask_rcnn_e3va_swin_t_1x import dataloader, model, optimizer, train

train.max_iter = 270000
