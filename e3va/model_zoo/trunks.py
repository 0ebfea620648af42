"""The pretrained weights of a trunk, from wherever a user or an adapter says they are."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..utils.errors import UserError
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import DEMO, DEMO_FILE
from .resolve import SCHEME, local_path
from .table import find_trunk_name


def trunk_path(name: str) -> Path:
    """The file of pretrained weights that ``name`` means.

    Args:
        name: ``"demo"``, an ``e3va://`` address, a file's path, or the bare name of a trunk of the
            zoo (a file of that name comes first).

    Raises:
        UserError: there is no such file or name.
    """
    if name == DEMO:
        return DEMO_FILE
    if name.startswith(SCHEME):
        return local_path(name)
    address = as_address(name)
    return local_path(address) if address else Path(name).expanduser()


def as_address(name: str) -> str | None:
    """The zoo's address that a bare name means; None for what means a file."""
    path = Path(name).expanduser()
    if path.exists() or path.name != name:
        return None
    known = find_trunk_name(name)
    if known:
        return SCHEME + known
    return None if path.suffix else SCHEME + name  # that there is none such, the zoo says best


def read_trunk_file(name: str) -> tuple[dict[str, Tensor], str]:
    """A pretrained Swin's state dict, and its file's path for messages; see :func:`trunk_path`.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = trunk_path(name)
    return model_state(load_file(path), str(path)), str(path)


def find_trunk_of(
    config: AdapterConfig, given: str | None = None, near: Path | None = None
) -> tuple[dict[str, Tensor], str]:
    """The trunk that an adapter was trained on; whether it is that one, its fingerprint tells.

    Args:
        config: of the adapter.
        given: what the user says it is, see :func:`trunk_path`; None to look for it.
        near: the adapter's folder, in and above which a file of the trunk's name may lie.

    Returns:
        its state dict, and its file's path.

    Raises:
        UserError: it is not found; the text says where it was looked for.
    """
    if given:
        return read_trunk_file(given)
    source = config.trunk.source
    if source == DEMO or source.startswith(SCHEME):
        return read_trunk_file(source)
    name = Path(source).name
    folders = [*_folders(near)]
    for folder in folders:
        if (folder / name).is_file():
            return read_trunk_file(str(folder / name))
    known = find_trunk_name(name)
    if known:
        return read_trunk_file(SCHEME + known)
    looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise UserError(
        f"the adapter's trunk {source} (fingerprint {config.trunk.short}) is not to be found: no "
        f"such file in {looked}, and no trunk of the zoo has that name; give it with --trunk FILE "
        "(train.trunk=FILE along Detectron2)"
    )


def _folders(near: Path | None) -> Iterator[Path]:
    if near is not None:
        yield near
        yield near.resolve().parent
    yield Path.cwd()
