from copy import deepcopy

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from e3va.detectron2.optim import highway_lr_factor

# AdamW with the learning rate and weight decay of Swin's detection training (arXiv 2103.14030,
# appendix A2.2). The learning rate of the adapters is 6.4 times as high, the best for e3va_chain on
# label maps in benchmarks/results/accuracy/results.md and close to it on boxes and masks. That
# benchmark has a small trunk and other learning rates for the heads, so the factor is a starting
# point for large trunks. Ten times the weight decay changed little there.
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        # The training script sets params.model.
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        lr_factor_func=L(highway_lr_factor)(adapters=6.4),
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

# The learning rate and weight decay of Swin's ADE20K training (appendix A2.3 there, and
# mmsegmentation's configs/swin), with the same factor for the adapters.
semantic_optimizer = deepcopy(optimizer)
semantic_optimizer.lr = 6e-5
semantic_optimizer.weight_decay = 0.01
