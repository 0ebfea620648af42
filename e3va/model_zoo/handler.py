"""A handler of ``e3va://`` addresses for iopath's and Detectron2's path managers."""

from typing import IO, Any

from iopath.common.file_io import PathHandler, PathManager, g_pathmgr

from ..utils.errors import UserError
from .resolve import find_place, local_path
from .rows import SCHEME


class E3VAPathHandler(PathHandler):
    """Read-only access to the zoo's files, which are downloaded if they are not in the cache."""

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(local_path(path, force))

    def _open(
        self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any
    ) -> IO[str] | IO[bytes]:
        if mode not in ("r", "rt", "rb"):
            raise UserError(f"{path} cannot be opened with mode {mode!r}: the zoo is read-only")
        local = local_path(path)
        if local.is_dir():
            raise UserError(f"{path} is a folder: add one of {', '.join(self._ls(path))}")
        return open(local, mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (True, False), **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (False,), **kwargs)

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._is(path, (True,), **kwargs)

    def _is(self, path: str, folder: tuple[bool, ...], **kwargs: Any) -> bool:
        self._check_kwargs(kwargs)
        try:
            return find_place(path).is_folder in folder
        except UserError:
            return False

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        self._check_kwargs(kwargs)
        place = find_place(path)
        if not place.is_folder:
            raise UserError(f"{path} is a file: expected a folder of the zoo")
        return place.below()


def register(path_manager: PathManager) -> None:
    """Let a path manager read ``e3va://`` addresses; a second call changes nothing."""
    try:
        path_manager.register_handler(E3VAPathHandler(), allow_override=False)
    except KeyError:
        return  # it is registered already


register(g_pathmgr)
