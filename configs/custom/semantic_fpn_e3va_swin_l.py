from .semantic_fpn_e3va_swin_t import data, dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.preset = "swin_l"
