#!/usr/bin/env python
r"""Draw a trained model's predictions for images, folders and globs.

    demo.py --config-file output/config.yaml --weights output/model_final.pth \
        --input photo.jpg folder 'more/*.png' --output drawn

With an adapter, the config is not needed: --weights output, or --weights e3va://NAME for an adapter
of the model zoo.
"""

import sys

try:
    from e3va import UserError
except ModuleNotFoundError:
    sys.exit("error: e3va is not installed for this Python: pip install -e PATH-OF-ITS-CHECKOUT")
try:
    from e3va.detectron2.visualize import main
except UserError as error:
    sys.exit(f"error: {error.line}")

if __name__ == "__main__":
    main(__doc__)
