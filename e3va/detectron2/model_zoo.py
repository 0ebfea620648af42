"""The model zoo for Detectron2: configs and models by name, as in ``detectron2.model_zoo``."""

from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import CONFIG_FILE, read_config
from ..model_zoo import get_checkpoint_url, get_config_file, local_path
from ..model_zoo.models import find_adapter_row
from ..model_zoo.rows import SCHEME
from ..swin.presets import preset_name
from ..utils.errors import UserError
from .checkpoint import HighwayCheckpointer
from .config import add_e3va_config, load_config
from .describe import FRAMEWORK, adopt

# The node of a yacs config that holds the number of classes, by the architecture.
_CLASSES_OF = {"RetinaNet": "RETINANET", "SemanticSegmentor": "SEM_SEG_HEAD"}


def get_config(config_path: str, trained: bool = False) -> DictConfig | CfgNode:
    """Return a config of the zoo: a LazyConfig object, or a ``CfgNode`` for a YAML file.

    Args:
        config_path: name of a config, see :func:`e3va.model_zoo.get_config_file`.
        trained: whether to set ``train.init_checkpoint`` (``MODEL.WEIGHTS`` in a YAML config) to
            the address of the trained checkpoint, and the backbone settings and the classes to
            those of its training. This downloads the adapter's description, a few kilobytes.

    Raises:
        UserError: there is no such config, or no adapter for it yet.
    """
    return _config(config_path, get_checkpoint_url(config_path) if trained else "")


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a model of the zoo, in training mode.

    Args:
        config_path: name of a config, see :func:`e3va.model_zoo.get_config_file`, or name of a
            published adapter.
        trained: whether to load the published weights; without them all weights are random.
        device: device of the model; by default the config's ``train.device``, or for a YAML config
            CUDA where there is a device.

    Raises:
        UserError: there is no such config or adapter, or no adapter for the config yet.
    """
    url = ""
    if not config_path.endswith((".py", ".yaml")):
        row = find_adapter_row(config_path)
        if row.framework != FRAMEWORK or not row.config:
            raise UserError(
                f"the adapter {row.name!r} names no Detectron2 config of this project (framework "
                f"{row.framework!r}): use e3va.torchvision.load_model for torchvision, or build "
                "its model and load it with e3va.load_adapter"
            )
        config_path, url = row.config, f"{SCHEME}{row.name}" if trained else ""
    elif trained:
        url = get_checkpoint_url(config_path)
    cfg = _config(config_path, url)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = build_model(cfg)
    else:
        model = instantiate(cfg.model).to(device or cfg.train.device)
    if url:
        row = find_adapter_row(url)
        HighwayCheckpointer(model, trunk=SCHEME + row.trunk).load(SCHEME + row.name)
    return model


def _config(config_path: str, url: str) -> Any:
    """Return a config, for the adapter at an address of the zoo if ``url`` is not empty."""
    file = get_config_file(config_path)
    description = None
    if url:  # only the smaller one of the adapter's two files is downloaded
        description = read_config(local_path(f"{find_adapter_row(url).address}/{CONFIG_FILE}"))
    if file.endswith(".yaml"):
        return _yaml_config(file, url, description)
    cfg = load_config(file)
    if "train" in cfg:
        cfg.train.init_checkpoint = url
    return adopt(cfg, description) if description else cfg


def _yaml_config(file: str, url: str, description: AdapterConfig | None) -> CfgNode:
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(file)
    cfg.MODEL.WEIGHTS = url
    if description is not None:
        config, node = description.backbone, cfg.MODEL.E3VA
        node.PRESET = preset_name(config.preset) or node.PRESET
        settings = {name.upper(): value for name, value in config.highway.to_dict().items()}
        node.HIGHWAY = CfgNode(settings, new_allowed=True)
        if description.classes:
            heads = _CLASSES_OF.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
            cfg.MODEL[heads].NUM_CLASSES = len(description.classes)
    return cfg
