"""Publish a finished training as a repository on the Hugging Face Hub."""

import os
import tempfile
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import MODEL_FILE, merge, write_adapter
from ..adapter_files.trunk import build_trunk
from ..utils.errors import UserError
from ..utils.optional import require
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import DEMO, DEMO_FILE
from .card import model_card
from .catalogue import packaged
from .download import cache_root
from .hub import SUFFIX, HubPlace, calling_hub, parse_hub_address, status_of
from .publish import check_trunk, find_file, name_in_zoo, read_finished
from .rows import HUB, SCHEME
from .trunks import read_trunk_file


def publish_on_hub(
    output: str | os.PathLike, to: str, *, license: str, trunk: str = "", replace: bool = False
) -> str:
    """Upload the adapter of a finished training, with a model card; return its address.

    The upload is one commit, so that readers see all of its files or none. The description then
    names the trunk by an address, at which readers find it.

    Args:
        output: output folder of the training.
        to: ``hf://USER/NAME``; the repository is created if there is none.
        license: the hub's name of a licence, such as ``apache-2.0``, for the model card.
        trunk: trunk of the training, if its file's name is not in the zoo: an address, its name in
            the zoo, or a file to upload too.
        replace: whether to overwrite an adapter that the repository has, and its model card.

    Raises:
        UserError: the training is not finished, a file is broken, readers could not find the
            trunk, the training had another trunk, the repository has an adapter already, there is
            no token, or the hub does not accept the upload.
    """
    place = parse_hub_address(to)
    if place != HubPlace(place.repo):
        raise UserError(f"--to {to}: expected {HUB}USER/NAME, without a revision and a file")
    if not license.strip():
        raise UserError(
            f"--to {to} without --license: the model card names the licence of the adapter, in the "
            "hub's form, such as apache-2.0, mit, cc-by-4.0 or other"
        )
    hub = require("huggingface_hub", to)
    trained = state, config = read_finished(Path(output))
    source, weights = _find_trunk(trained, trunk, place.repo)
    config = _with_source(config, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapter(state, config, folder)
        (folder / "README.md").write_text(model_card(config, place.repo, license.strip()), "utf-8")
        if weights:
            torch_file = require("safetensors.torch", to)
            torch_file.save_file(weights, folder / Path(source).name)
        with calling_hub(to):
            if not hub.get_token():
                raise UserError(
                    f"--to {to}: publishing needs a token that may write: log in with 'hf auth "
                    "login', or set HF_TOKEN"
                )
            api = hub.HfApi()
            _check_free(api, to, place.repo, replace)
            api.create_repo(place.repo, exist_ok=True)
            commit = api.upload_folder(
                repo_id=place.repo, folder_path=folder, commit_message="Publish an E³VA adapter"
            )
    return HubPlace(place.repo, commit.oid).address


def _check_free(api: Any, to: str, repo: str, replace: bool) -> None:
    try:
        files = [entry.rfilename for entry in api.model_info(repo).siblings or ()]
    except Exception as error:
        if status_of(error) != 404:
            raise
        files = []  # no such repository
    if MODEL_FILE in files and not replace:
        raise UserError(
            f"--to {to}: the repository has an adapter; choose another name, or add --replace to "
            "overwrite it"
        )


def _find_trunk(
    trained: tuple[dict[str, Tensor], AdapterConfig], given: str, repo: str
) -> tuple[str, dict[str, Tensor] | None]:
    """Return the address of a trunk for readers, and its weights if they are to be uploaded."""
    config = trained[1]
    source = given or config.trunk.source
    if source.startswith(HUB):
        weights, address = read_trunk_file(source)
        merge(*trained, weights, address)
        return address, None
    known = packaged().trunks
    name = name_in_zoo(config, given, known)
    if name:
        check_trunk(trained, find_file(known[name].file, cache_root()))
        return (DEMO if name == DEMO_FILE.stem else SCHEME + name), None
    path = Path(given)
    weights = model_state(load_file(path), given)
    module = build_trunk(config, weights, given, stored="fp32")
    return f"{HUB}{repo}/{path.stem}{SUFFIX}", module.state_dict()


def _with_source(config: AdapterConfig, source: str) -> AdapterConfig:
    model = {**config.model, "trunk": source} if "trunk" in config.model else config.model
    return changed(config, model=model, trunk=changed(config.trunk, source=source))
