"""``python -m e3va.model_zoo``."""

import sys

from .cli import main

sys.exit(main())
