"""``python -m e3va.data``."""

import sys

from .cli import main

sys.exit(main())
