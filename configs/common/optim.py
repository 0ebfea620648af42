from copy import deepcopy

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from e3va.detectron2.optim import highway_lr_factor

# AdamW with the rate and decay of Swin's detection training (arXiv 2103.14030, appendix A2.2); the
# decay of adapters has not been compared. The adapters' factor: of 0.5, 2 and 8 the last was the
# best on each of the five tasks of benchmarks/accuracy (a small trunk; for the large ones it is a
# starting point).
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(
        # params.model is set by the training script.
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        lr_factor_func=L(highway_lr_factor)(adapters=8.0),
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

# With the rate and decay of Swin's ADE20K training (appendix A2.3 there, and mmsegmentation's
# configs/swin); the adapters' factor as above.
semantic_optimizer = deepcopy(optimizer)
semantic_optimizer.lr = 6e-5
semantic_optimizer.weight_decay = 0.01
