"""Pretrained trunks, published adapters and configs by name, see ``docs/model-zoo.md``.

Importing this package registers ``e3va://`` addresses with iopath's global path manager. The
functions that build models are in the frameworks' own ``model_zoo`` modules.
"""

from ..utils.optional import require

require("iopath", "e3va.model_zoo")

from .catalogue import list_adapters, list_trunks  # noqa: E402
from .models import get_checkpoint_url, get_config_file  # noqa: E402
from .resolve import E3VAPathHandler, local_path, register  # noqa: E402

__all__ = [
    "E3VAPathHandler",
    "get_checkpoint_url",
    "get_config_file",
    "list_adapters",
    "list_trunks",
    "local_path",
    "register",
]
