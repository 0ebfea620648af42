"""Configs and published adapters by name, for both frameworks' ``model_zoo`` modules."""

import difflib
import json
from pathlib import PurePosixPath

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import CONFIG_FILE
from ..utils.errors import UserError
from ..utils.paths import CONFIG_ROOT
from .catalogue import table
from .merged import FULL_FILE
from .resolve import find_place, local_path
from .rows import SCHEME, AdapterRow

CONFIG_SUFFIXES = (".py", ".yaml")


def get_config_file(config_path: str) -> str:
    """Return the path of a config file of the project.

    Args:
        config_path: name below ``configs``, such as ``"COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"``.

    Raises:
        UserError: there is none of that name; the text has the nearest ones.
    """
    known = {
        file.relative_to(CONFIG_ROOT).as_posix(): str(file)
        for file in sorted(CONFIG_ROOT.rglob("*"))
        if file.suffix in CONFIG_SUFFIXES and file.resolve().is_relative_to(CONFIG_ROOT.resolve())
    }
    if config_path in known:
        return known[config_path]
    names = [name for name in known if not name.startswith("common/")]
    nearest = difflib.get_close_matches(config_path, names, n=3, cutoff=0.4) or names[:3]
    raise UserError(
        f"no config file {config_path!r} below {CONFIG_ROOT}; nearest: {', '.join(nearest)}"
    )


def trained_row(config_path: str) -> AdapterRow:
    """Return the published adapter that was trained with a config, or with its YAML twin.

    Raises:
        UserError: no such config; nobody has published an adapter for it, or several have.
    """
    get_config_file(config_path)
    wanted = PurePosixPath(config_path).with_suffix("")
    rows = [
        row
        for row in table(refresh=False).adapters.values()
        if PurePosixPath(row.config).with_suffix("") == wanted
    ]
    if not rows:
        raise UserError(
            f"nobody has published an adapter for {config_path} yet: use trained=False, and train "
            f"it with projects/E3VA/lazyconfig_train_net.py --config-file {config_path}; e3va zoo "
            "publish then adds it to your own zoo"
        )
    if len(rows) > 1:
        names = ", ".join(row.name for row in rows)
        raise UserError(f"{config_path} has several adapters: give one of their names, {names}")
    return rows[0]


def find_adapter_row(name: str) -> AdapterRow:
    """Return the row of a published adapter by its name or address.

    Raises:
        UserError: there is none, or it is the name of a trunk.
    """
    row = find_place(SCHEME + name.removeprefix(SCHEME)).row
    if not isinstance(row, AdapterRow):
        raise UserError(f"{name!r} is not an adapter: expected a config or an adapter's name")
    return row


def address_of(row: AdapterRow) -> str:
    """Return the address of the whole model's checkpoint, in Detectron2's format."""
    return f"{row.address}/{FULL_FILE}"


def description_of(row: AdapterRow) -> AdapterConfig:
    """Return the adapter's description; download only its ``adapter_config.json``."""
    file = local_path(f"{row.address}/{CONFIG_FILE}")
    return AdapterConfig.from_dict(json.loads(file.read_text(encoding="utf-8")), str(file))


def get_checkpoint_url(config_path: str) -> str:
    """Return the address of the checkpoint that was trained with a config.

    Raises:
        UserError: no such config; nobody has published an adapter for it, or several have.
    """
    return address_of(trained_row(config_path))
