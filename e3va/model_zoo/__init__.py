"""The model zoo: pretrained trunks, published adapters and configs by name.

The functions are those of ``detectron2.model_zoo``. Addresses begin with ``e3va://``; importing
this package lets iopath's global path manager read them, and :func:`register` any other one.
Files come from their public addresses, or from the mirror that the environment variable
``E3VA_ZOO`` names, a folder or a web address; they are kept in iopath's cache and checked at every
use.

Raises:
    UserError: iopath is not installed.
"""

from ..utils.optional import require

require("iopath", "e3va.model_zoo")

from .handler import E3VAPathHandler, register  # noqa: E402
from .models import get, get_checkpoint_url, get_config, get_config_file  # noqa: E402
from .resolve import local_path  # noqa: E402
from .table import list_adapters, list_trunks  # noqa: E402

__all__ = [
    "E3VAPathHandler",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "list_adapters",
    "list_trunks",
    "local_path",
    "register",
]
