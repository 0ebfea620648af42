"""``python -m e3va.model_zoo``."""

import sys

from ..cli.zoo import main

sys.exit(main())
