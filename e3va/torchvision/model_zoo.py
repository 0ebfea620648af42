"""Models of this framework from the zoo, by the names of their adapters."""

import torch
from torch import nn

from ..adapter_files.files import CONFIG_FILE, read_config
from ..model_zoo import local_path
from ..model_zoo.models import find_adapter_row
from ..model_zoo.rows import SCHEME
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
    row = find_adapter_row(name)
    if row.framework != FRAMEWORK:
        raise UserError(
            f"the adapter {row.name!r} is for {row.framework or 'no framework'}: expected one for "
            f"{FRAMEWORK}, see e3va zoo list"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if trained:
        return load_model(row.address, device, trunk=f"{SCHEME}trunks/{row.trunk}")[0]
    description = read_config(local_path(f"{row.address}/{CONFIG_FILE}"))  # without its weights
    return build_model(ModelConfig.from_dict(description.model, row.address)).to(device)
