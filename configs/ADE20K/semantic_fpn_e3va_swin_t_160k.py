from ..common.schedule import lr_multiplier_160k as lr_multiplier
from .semantic_fpn_e3va_swin_t_80k import dataloader, model, optimizer, train

train.max_iter = 160000
train.checkpointer.period = 16000
train.eval_period = 16000
