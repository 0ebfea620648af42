"""``hf://`` addresses: safetensors files of a repository on the Hugging Face Hub.

huggingface_hub downloads them into its own cache, and finds the token of a private repository.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..adapter_files.files import MODEL_FILE
from ..utils.errors import UserError, brief
from ..utils.optional import require
from ..weights.checkpoint import is_safetensors
from .download import say, sha256_of
from .rows import ADAPTER_FILES, HUB, is_name

SUFFIX = ".safetensors"
_DEFAULT = "model.safetensors"  # the file that other libraries load if there are several
_FORM = f"{HUB}USER/NAME, {HUB}USER/NAME@REVISION or {HUB}USER/NAME/FILE{SUFFIX}"
_ADDRESS = re.compile(rf"{HUB}([^/@]+/[^/@]+)(?:@(refs/pr/[0-9]+|[^/@]+))?(?:/(.+?))?/?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub at a revision, or one file of it."""

    repo: str
    revision: str = "main"
    file: str = ""  # "" for the adapter, or for the only file, of the repository

    @property
    def address(self) -> str:
        """The address; a commit in it names the same files for ever."""
        return f"{HUB}{self.repo}@{self.revision}{f'/{self.file}' if self.file else ''}"


def parse_hub_address(address: str) -> HubPlace:
    """Read an address, ``hf://USER/NAME[@REVISION][/FILE]``.

    Raises:
        UserError: the text is no such address, or its file is not of a kind that is read.
    """
    found = _ADDRESS.fullmatch(address)
    repo, revision, file = found.groups() if found else ("", "", "")
    parts = [*repo.split("/"), *(file or "").split("/" if file else None)]
    parts += (revision or "").removeprefix("refs/pr/").split()
    if not found or not all(map(is_name, parts)):
        raise UserError(f"{address[:200]!r} is not an address on the hub: expected {_FORM}")
    if file and not file.endswith(SUFFIX) and file not in ADAPTER_FILES:
        raise UserError(
            f"{address}: only {SUFFIX} files are read from the hub, because others can run code; "
            f"expected {_FORM}"
        )
    return HubPlace(repo, revision or "main", "" if file in ADAPTER_FILES else file or "")


def fetch(address: str, force: bool = False) -> tuple[Path, str]:
    """Download what an address names, unless huggingface_hub's cache has it.

    Args:
        address: see :func:`parse_hub_address`. Without a file, it names the adapter of the
            repository; if there is none, its ``model.safetensors`` or its only safetensors file.
        force: whether to download the files again even if the cache has them.

    Returns:
        the folder of the adapter or the file; and the address with the commit, and with the file.

    Raises:
        UserError: the text is no address; there is no such repository, revision or file; a token is
            needed; the hub cannot be reached and the cache has no copy; or a file is broken.
    """
    place = parse_hub_address(address)
    require("huggingface_hub", address)
    with calling_hub(address):
        if place.file:
            folder, names = _download_file(place, force), [place.file]
        else:
            folder, names = _download_all(place, force)
    for name in names:
        if name.endswith(SUFFIX):
            _check(folder / name, address)
    is_adapter = len(names) > 1
    pinned = HubPlace(place.repo, folder.name, "" if is_adapter else names[0]).address
    return (folder if is_adapter else folder / names[0]), pinned


def _download_file(place: HubPlace, force: bool) -> Path:
    """Return the folder of the snapshot with the file of ``place``."""
    import huggingface_hub as hub

    options = {"revision": place.revision, "force_download": force}
    path = hub.hf_hub_download(place.repo, place.file, **options)
    return Path(path).parents[place.file.count("/")]


def _download_all(place: HubPlace, force: bool) -> tuple[Path, list[str]]:
    """Return the folder of the snapshot, and the names of the files of ``place`` in it."""
    import huggingface_hub as hub

    if _COMMIT.fullmatch(place.revision) and not force:
        with contextlib.suppress(FileNotFoundError, UserError):  # then it is downloaded
            folder, names = _cached(place)
            if len(names) > 1:  # an adapter; of other files the cache may lack some
                return folder, names
    try:
        listed = hub.HfApi().model_info(place.repo, revision=place.revision).siblings
    except Exception as error:
        if status_of(error) not in (None, *range(500, 600)) or force:
            raise
        with contextlib.suppress(FileNotFoundError, UserError):
            folder, names = _cached(place)
            copy = HubPlace(place.repo, folder.name).address
            say(f"note: {_explain(error)[0]}: the copy in the cache is used, {copy}")
            return folder, names
        raise
    names = _choose(place, [entry.rfilename for entry in listed])
    options = {"revision": place.revision, "force_download": force}
    folder = hub.snapshot_download(place.repo, allow_patterns=names, **options)
    return _complete(place, Path(folder), names)


def _cached(place: HubPlace) -> tuple[Path, list[str]]:
    """Return the result of :func:`_download_all` without a request.

    Raises:
        FileNotFoundError: the cache has nothing of the repository at this revision.
        UserError: it has not all of the files.
    """
    import huggingface_hub as hub

    options = {"revision": place.revision, "local_files_only": True, "allow_patterns": []}
    folder = Path(hub.snapshot_download(place.repo, **options))
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return folder, _choose(place, names)


def _complete(place: HubPlace, folder: Path, names: list[str]) -> tuple[Path, list[str]]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{place.address} changed during the download, and lacks {missing[0]} now: try again"
        )
    return folder, names


def _choose(place: HubPlace, listed: Iterable[str]) -> list[str]:
    """Return the names of an adapter's two files, or of one file of weights; none is a pattern."""
    names = sorted(name for name in listed if all(map(is_name, name.split("/"))))
    if {*ADAPTER_FILES} <= {*names}:
        return list(ADAPTER_FILES)
    weights = [name for name in names if name.endswith(SUFFIX) and name != MODEL_FILE]
    if _DEFAULT in weights or len(weights) == 1:
        return [_DEFAULT if _DEFAULT in weights else weights[0]]
    if weights:
        raise UserError(
            f"{place.address} has {len(weights)} files of weights, {', '.join(weights[:5])}: name "
            f"one of them, as in {HUB}{place.repo}/{weights[0]}"
        )
    held = ", ".join(names[:5]) or "nothing"
    raise UserError(
        f"{place.address} has neither an adapter ({' and '.join(ADAPTER_FILES)}) nor a {SUFFIX} "
        f"file (it has {held}): only these are read from the hub, because others can run code"
    )


def _check(path: Path, address: str) -> None:
    """Check that a file is of safetensors, whatever its name says, and has its own SHA-256."""
    with open(path, "rb") as file:
        if not is_safetensors(file.read(9)):
            raise UserError(
                f"{address}: {path.name} is no {SUFFIX} file, whatever its name says, and is not "
                "read; use another repository or revision"
            )
    # Of a large file the hub gives the SHA-256, which is the name of the file that the link names.
    wanted = Path(os.readlink(path)).name if path.is_symlink() else ""
    if _SHA256.fullmatch(wanted) and sha256_of(path) != wanted:
        raise UserError(
            f"{address}: {path.resolve()} has sha256 {sha256_of(path)} instead of {wanted}: it was "
            "altered or truncated; delete it and try again"
        )


@contextlib.contextmanager
def calling_hub(address: str) -> Iterator[None]:
    """Turn an error of huggingface_hub into a UserError of one line, which has no token in it.

    Its progress bars are only drawn in a terminal.
    """
    from huggingface_hub import constants, utils

    asked = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or utils.are_progress_bars_disabled()
    hide = not asked and not sys.stderr.isatty()
    if hide:
        utils.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    # It passes on the errors of its HTTP library, which another version replaces, and of the disk.
    except Exception as error:
        raise UserError(f"{address}: {': '.join(_explain(error))}") from None
    finally:
        if hide:
            utils.enable_progress_bars()


def status_of(error: BaseException) -> int | None:
    """Return the status of the hub's answer; None if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(error: BaseException) -> tuple[str, str]:
    """Return what is wrong, and what to do."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError):
        error = error.__cause__ or error
    status = status_of(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it to reach the hub"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision", "give a branch, a tag or a commit after '@'"
    if isinstance(error, errors.EntryNotFoundError) and status:
        return "the repository has no such file", "check its name"
    if status in (401, 403):
        return (
            "there is no such repository, or it needs a token",
            "check the name; for access to a private one log in with 'hf auth login', or set "
            "HF_TOKEN to a token that has it",
        )
    if status == 404:
        return "there is no such repository", "check the name"
    if status:
        said = brief(ValueError(getattr(error, "server_message", None) or "it gave no reason"))
        return f"the hub answered with status {status} ({said})", "try again later"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} ({error.strerror})", "free some space, or get permission"
    text = brief(RuntimeError(str(error).replace(get_token() or "\0", "...")))
    if isinstance(error, ValueError):
        return f"huggingface_hub refuses it ({text})", "give what it expects"
    what = f"{constants.ENDPOINT} cannot be reached, or gave no whole answer ({text})"
    return what, "check the connection, and try again later"
