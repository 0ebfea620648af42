from ..common.data.ade20k import dataloader
from ..common.models.semantic_fpn import model
from ..common.optim import semantic_optimizer as optimizer
from ..common.schedule import lr_multiplier_80k as lr_multiplier
from ..common.train import train

train.max_iter = 80000
train.checkpointer.period = 8000
train.eval_period = 8000
