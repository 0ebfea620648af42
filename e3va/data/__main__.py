"""``python -m e3va.data``."""

import sys

from ..cli.check import main

sys.exit(main())
