"""Configs and models by name, as ``detectron2.model_zoo`` has them for Detectron2's own."""

import difflib
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import CONFIG_FILE
from ..backbone import find_backbone
from ..swin.presets import preset_name
from ..utils.errors import UserError
from ..utils.paths import CONFIG_ROOT
from ..weights.checkpoint import load_file, model_state
from .handler import register
from .merged import FULL_FILE
from .resolve import SCHEME, find_place, local_path
from .rows import ADAPTERS, TRUNKS, AdapterRow
from .table import table

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from omegaconf import DictConfig

DETECTRON2, TORCHVISION = "detectron2", "torchvision"
_SUFFIXES = (".py", ".yaml")
# Where a yacs config says how many classes there are, by its architecture.
_CLASSES_OF = {"RetinaNet": "RETINANET", "SemanticSegmentor": "SEM_SEG_HEAD"}


def get_config_file(config_path: str) -> str:
    """The path of a config file of the project.

    Args:
        config_path: its name below ``configs``, as ``"COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"``.

    Raises:
        UserError: there is none of that name; the text has the nearest ones.
    """
    name = PurePosixPath(config_path)
    path = CONFIG_ROOT / name
    plain = not name.is_absolute() and ".." not in name.parts and "\0" not in config_path
    if (
        plain
        and name.suffix in _SUFFIXES
        and path.is_file()
        and path.resolve().is_relative_to(CONFIG_ROOT.resolve())
    ):
        return str(path)
    known = sorted(
        file.relative_to(CONFIG_ROOT).as_posix()
        for file in CONFIG_ROOT.rglob("*")
        if file.suffix in _SUFFIXES and file.relative_to(CONFIG_ROOT).parts[0] != "common"
    )
    nearest = difflib.get_close_matches(config_path, known, n=3, cutoff=0.4) or known[:3]
    raise UserError(
        f"no config {config_path!r} in the zoo: expected a name below {CONFIG_ROOT}, nearest: "
        f"{', '.join(nearest)}"
    )


def get_checkpoint_url(config_path: str) -> str:
    """The address of the checkpoint that was trained with a config, ``e3va://adapters/NAME/…``.

    Args:
        config_path: see :func:`get_config_file`.

    Raises:
        UserError: no such config; nobody has published an adapter for it yet.
    """
    return _address(_trained_row(config_path))


def _address(row: AdapterRow) -> str:
    return f"{SCHEME}{ADAPTERS}/{row.name}/{FULL_FILE}"


def _trained_row(config_path: str) -> AdapterRow:
    get_config_file(config_path)
    wanted = PurePosixPath(config_path).with_suffix("")
    rows = [
        row
        for row in table(refresh=False).adapters.values()
        if row.framework == DETECTRON2 and PurePosixPath(row.config).with_suffix("") == wanted
    ]
    if not rows:
        raise UserError(
            f"nobody has published an adapter for {config_path} yet: get it with trained=False, "
            "and train it with projects/E3VA/lazyconfig_train_net.py --config-file "
            f"{config_path}; python -m e3va.model_zoo publish then adds it to a zoo of yours"
        )
    if len(rows) > 1:
        names = ", ".join(row.name for row in rows)
        raise UserError(
            f"{config_path} has several adapters ({names}): give the name of one in its place"
        )
    return rows[0]


def get_config(config_path: str, trained: bool = False) -> "DictConfig | CfgNode":
    """A config of the zoo for Detectron2.

    Args:
        config_path: see :func:`get_config_file`.
        trained: let ``train.init_checkpoint``, or of a YAML config ``MODEL.WEIGHTS``, be the
            trained checkpoint's address, and the backbone's settings and the classes those of its
            training, which may have overridden the config's; for them the adapter's description
            (some kilobytes) is downloaded if it is not here.

    Returns:
        a LazyConfig object, or a ``CfgNode`` for a YAML file.

    Raises:
        UserError: no such config, no adapter for it yet, or Detectron2 is not installed.
    """
    return _config(config_path, _trained_row(config_path) if trained else None)


def _config(config_path: str, row: AdapterRow | None) -> Any:
    file = get_config_file(config_path)
    if file.endswith(".yaml"):
        return _yaml_config(file, row)
    from ..detectron2.config import load_config
    from ..detectron2.describe import adopt

    cfg = load_config(file)
    if "train" in cfg:
        cfg.train.init_checkpoint = "" if row is None else _address(row)
    return cfg if row is None else adopt(cfg, _description(row))


def _yaml_config(file: str, row: AdapterRow | None) -> Any:
    from ..detectron2 import add_e3va_config

    from detectron2.config import CfgNode, get_cfg  # isort: skip

    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(file)
    cfg.MODEL.WEIGHTS = ""
    if row is not None:
        cfg.MODEL.WEIGHTS = _address(row)
        told = _description(row)
        own, node = told.backbone, cfg.MODEL.E3VA
        node.PRESET = preset_name(own.preset) or node.PRESET
        settings = {name.upper(): value for name, value in own.highway.to_dict().items()}
        node.HIGHWAY = CfgNode(settings, new_allowed=True)
        if told.classes:
            heads = _CLASSES_OF.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")
            cfg.MODEL[heads].NUM_CLASSES = len(told.classes)
    return cfg


def _description(row: AdapterRow) -> AdapterConfig:
    # Of its two files the small one alone, whose sha256 has been checked.
    file = local_path(f"{SCHEME}{ADAPTERS}/{row.name}/{CONFIG_FILE}")
    return AdapterConfig.from_dict(json.loads(file.read_text(encoding="utf-8")), str(file))


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model of the zoo.

    Args:
        config_path: a config, see :func:`get_config_file`, or the name of a published adapter.
        trained: load the published weights; else all weights are random.
        device: the config's own by default; CUDA where there is one.

    Returns:
        the model: along Detectron2 in training mode, as ``detectron2.model_zoo.get`` returns it;
        along torchvision in evaluation mode, as :func:`e3va.torchvision.load_model` does.

    Raises:
        UserError: no such config or adapter; nobody has published one for it yet; the framework that it
            needs is not installed.
    """
    row = None
    if not config_path.endswith(_SUFFIXES):
        row = find_place(SCHEME + config_path.removeprefix(SCHEME)).row
        if not isinstance(row, AdapterRow):
            raise UserError(f"{config_path!r} is a trunk: expected a config or an adapter's name")
        if row.framework == TORCHVISION:
            return _torchvision_model(row, trained, device)
        if row.framework != DETECTRON2 or not row.config:
            raise UserError(
                f"the adapter {row.name!r} names no config of this project (its model was built "
                "elsewhere): build the model and use e3va.adapter_files.files.load_adapter"
            )
        config_path = row.config
    elif trained:
        row = _trained_row(config_path)
    return _detectron2_model(config_path, row if trained else None, device)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _torchvision_model(row: AdapterRow, trained: bool, device: str | None) -> nn.Module:
    from ..torchvision import ModelConfig, build_model, load_model

    address = f"{SCHEME}{ADAPTERS}/{row.name}"
    device = device or _default_device()
    if trained:
        return load_model(address, device, trunk=f"{SCHEME}{TRUNKS}/{row.trunk}")[0]
    config = ModelConfig.from_dict(_description(row).model, address)
    return build_model(config).to(device)


def _detectron2_model(config_path: str, row: AdapterRow | None, device: str | None) -> nn.Module:
    cfg = _config(config_path, row)
    from detectron2.config import CfgNode, instantiate
    from detectron2.modeling import build_model
    from detectron2.utils.file_io import PathManager

    from ..detectron2.checkpoint import HighwayCheckpointer

    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or _default_device()
        model = build_model(cfg)
    else:
        model = instantiate(cfg.model).to(device or cfg.train.device)
    if row is not None:
        register(PathManager)
        _check_fit(model, row)
        HighwayCheckpointer(model).load(_address(row))
    return model


def _check_fit(model: nn.Module, row: AdapterRow) -> None:
    """Detectron2's checkpointer leaves out, with a warning, what does not fit."""
    source = f"{SCHEME}{ADAPTERS}/{row.name}"
    _description(row).check_backbone(find_backbone(model)[1], source)
    state = model_state(load_file(local_path(_address(row))), source)
    for key, value in model.state_dict().items():
        if key not in state or state[key].shape != value.shape:
            found = list(state[key].shape) if key in state else "absent"
            raise UserError(
                f"{source} does not fit the model of {row.config}: {key} is {found}, expected "
                f"{list(value.shape)}; it was trained with overrides of that config, so build the "
                "model with the same and load the adapter into it"
            )
