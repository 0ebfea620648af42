#!/usr/bin/env python
r"""Train or evaluate a LazyConfig with an E³VA highway; the flags are Detectron2's.

    lazyconfig_train_net.py --config-file custom/cascade_mask_rcnn_e3va_swin_t.py \
        data.train.json=train.json data.train.images=train \
        data.val.json=val.json data.val.images=val train.output_dir=output

Other arguments: --resume, --eval-only, and any key=value of the config. For several processes, give
--num-gpus N, and on several machines also --num-machines, --machine-rank and --dist-url; or start
the script with torchrun, without these flags. train.init_checkpoint=PATH names the weights to start
from: a pretrained Swin, a trained checkpoint, an adapter, or an e3va:// address of the model zoo.
"""

import sys

try:
    from e3va import UserError
except ModuleNotFoundError:
    sys.exit("error: e3va is not installed for this Python: pip install -e PATH-OF-ITS-CHECKOUT")
try:
    from e3va.detectron2.engine import main
except UserError as error:
    sys.exit(f"error: {error.line}")

if __name__ == "__main__":
    main(__doc__)
