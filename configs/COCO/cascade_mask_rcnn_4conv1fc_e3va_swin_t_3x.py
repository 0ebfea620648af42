from ..common.models.cascade_mask_rcnn_4conv1fc import model
from .cascade_mask_rcnn_e3va_swin_t_3x import dataloader, lr_multiplier, optimizer, train
