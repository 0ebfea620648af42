"""Pretrained trunks, published adapters and configs, by name.

The names are those of ``detectron2.model_zoo``; ``get`` and ``get_config`` are in
:mod:`e3va.detectron2.model_zoo`, and torchvision's ``get`` is in :mod:`e3va.torchvision.model_zoo`.
Addresses begin with ``e3va://``. Importing this package registers them with iopath's global path
manager; :func:`register` does so for another path manager.

Files come from their public addresses, or from the mirror in the environment variable ``E3VA_ZOO``:
a folder, or a web address. Downloads are kept in iopath's cache folder (``FVCORE_CACHE``) and
checked at every use.

Raises:
    UserError: iopath is not installed.
"""

from ..utils.optional import require

require("iopath", "e3va.model_zoo")

from .catalogue import list_adapters, list_trunks  # noqa: E402
from .handler import E3VAPathHandler, register  # noqa: E402
from .models import get_checkpoint_url, get_config_file  # noqa: E402
from .resolve import local_path  # noqa: E402

__all__ = [
    "E3VAPathHandler",
    "get_checkpoint_url",
    "get_config_file",
    "list_adapters",
    "list_trunks",
    "local_path",
    "register",
]
