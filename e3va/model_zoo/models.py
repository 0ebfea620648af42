"""Configs and published adapters by name, for both frameworks' ``model_zoo`` modules."""

import difflib
from pathlib import PurePosixPath

from ..utils.errors import UserError
from ..utils.paths import CONFIG_ROOT
from .catalogue import table
from .resolve import find_place
from .rows import SCHEME, AdapterRow
from .store import FULL_FILE

CONFIG_SUFFIXES = (".py", ".yaml")


def get_config_file(config_path: str) -> str:
    """Return the path of a config file of the project.

    Args:
        config_path: name below ``configs``, such as ``"COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"``.

    Raises:
        UserError: there is no config of that name; the message has the nearest names.
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


def get_checkpoint_url(config_path: str) -> str:
    """Return the address of a whole model's checkpoint that was trained with a config.

    An adapter that was trained with the config's YAML twin counts too.

    Raises:
        UserError: there is no such config, or not exactly one published adapter for it.
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
            f"nobody has published an adapter for {config_path} yet: use trained=False, or train "
            f"it with projects/E3VA/lazyconfig_train_net.py --config-file {config_path}; e3va zoo "
            "publish then adds it to your own zoo"
        )
    if len(rows) > 1:
        names = ", ".join(row.name for row in rows)
        raise UserError(f"{config_path} has several adapters: give one of their names, {names}")
    return f"{rows[0].address}/{FULL_FILE}"


def find_adapter_row(name: str) -> AdapterRow:
    """Return the row of a published adapter by its name or address."""
    row = find_place(SCHEME + name.removeprefix(SCHEME)).row
    if not isinstance(row, AdapterRow):
        raise UserError(
            f"{name!r} is not an adapter: expected the name of an adapter, see e3va zoo list"
        )
    return row
