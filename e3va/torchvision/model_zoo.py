"""Models of this framework from the zoo, by the names of their adapters."""

import json

import torch
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import CONFIG_FILE
from ..model_zoo.resolve import SCHEME, find_place, local_path
from ..model_zoo.rows import ADAPTERS, TRUNKS, AdapterRow
from ..utils.errors import UserError
from .description import FRAMEWORK
from .loading import load_model
from .models import ModelConfig, build_model


def get(name: str, trained: bool = True, device: str | torch.device | None = None) -> nn.Module:
    """Return a model of the zoo.

    Args:
        name: the name of a published adapter, or its ``e3va://`` address.
        trained: whether to load the published weights; with False all weights are random.
        device: the model's device; None for CUDA where there is a device, else the CPU.

    Returns:
        the model; a trained one is in evaluation mode, see :func:`e3va.torchvision.load_model`.

    Raises:
        UserError: the zoo has no adapter of that name for this framework, or a file cannot be
            downloaded.
    """
    row = find_place(SCHEME + name.removeprefix(SCHEME)).row
    if not isinstance(row, AdapterRow):
        raise UserError(f"{name!r} is no adapter: expected the name of one, see e3va zoo list")
    if row.framework != FRAMEWORK:
        raise UserError(
            f"the adapter {row.name!r} is for {row.framework or 'no framework'}: expected one for "
            f"{FRAMEWORK}, see e3va zoo list"
        )
    address = f"{SCHEME}{ADAPTERS}/{row.name}"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if trained:
        return load_model(address, device, trunk=f"{SCHEME}{TRUNKS}/{row.trunk}")[0]
    file = local_path(f"{address}/{CONFIG_FILE}")  # a few kilobytes; no weights are downloaded
    description = AdapterConfig.from_dict(json.loads(file.read_text(encoding="utf-8")), str(file))
    return build_model(ModelConfig.from_dict(description.model, address)).to(device)
