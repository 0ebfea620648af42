#!/usr/bin/env python
"""Train or evaluate a LazyConfig along the E³VA highway; the flags are Detectron2's.

    lazyconfig_train_net.py --config-file custom/cascade_mask_rcnn_e3va_swin_t.py \\
        data.train.json=train.json data.train.images=train \\
        data.val.json=val.json data.val.images=val train.output_dir=output

Also: --resume, --eval-only, and any key=value of the config. In several processes: --num-gpus N,
with --num-machines, --machine-rank and --dist-url on several machines; or start it with torchrun,
without these flags. Weights to start from are train.init_checkpoint=PATH, of a pretrained Swin, a
trained checkpoint or an adapter, or an e3va:// address of the model zoo.
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
