"""``python -m e3va`` is the ``e3va`` command."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
