from .cascade_mask_rcnn_4conv1fc_e3va_swin_t_3x import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.preset = "swin_l"
