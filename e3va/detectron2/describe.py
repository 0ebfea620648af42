"""What an adapter says of a LazyConfig, and a LazyConfig built from what an adapter says.

An adapter names a config of this project and carries plain data; nothing in it is ever called.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from detectron2.config import LazyCall
from detectron2.data import Metadata, MetadataCatalog
from omegaconf import DictConfig

from ..adapter_files.description import AdapterConfig
from ..highway.config import highway_config
from ..model_zoo import get_config_file
from ..swin.presets import PRESETS, SwinPreset, preset_name, same_geometry
from ..utils.errors import UserError
from .config import load_config

FRAMEWORK = "detectron2"


def describe_config(cfg: DictConfig, loader: Any = None) -> dict[str, Any]:
    """What :func:`e3va.adapter_files.description.describe_model` is told of a training.

    Args:
        cfg: of the training.
        loader: its training data loader, for the counts.
    """
    return {
        "framework": FRAMEWORK,
        # Configs on Detectron2's own "train" lack the name.
        "model": {"config": cfg.train.get("config_name", "")},
        "classes": output_classes(cfg),
        "trained_on": _describe_data(cfg, loader),
    }


def output_classes(cfg: DictConfig) -> tuple[str, ...]:
    """Names of the classes of a config's model in the order of its outputs; () if nobody says."""
    metadata = find_metadata(cfg)
    kinds = ("stuff_classes",) if labels_pixels(cfg) else ("thing_classes", "stuff_classes")
    return tuple(next((metadata.get(kind) for kind in kinds if metadata.get(kind)), ()))


def find_metadata(cfg: DictConfig) -> Metadata:
    """The class names, as Detectron2's ``Visualizer`` takes them."""
    if "data" in cfg and cfg.data.classes is not None:
        return class_metadata(cfg, cfg.data.classes)
    names = _dataset_names(cfg, "test")
    return MetadataCatalog.get(names[0]) if names else Metadata()


def labels_pixels(cfg: DictConfig) -> bool:
    """Whether a config's model labels pixels alone, and finds no instances."""
    return "sem_seg_head" in cfg.model and "roi_heads" not in cfg.model


def class_metadata(cfg: DictConfig, names: Sequence[str]) -> Metadata:
    """Class names of a config's model as Detectron2's ``Visualizer`` takes them."""
    kind = "stuff_classes" if labels_pixels(cfg) else "thing_classes"
    return Metadata(**{kind: list(names)})


def _dataset_names(cfg: DictConfig, split: str) -> list[str]:
    dataset = cfg.get("dataloader", {}).get(split, {}).get("dataset", {})
    names = dataset.get("names") if isinstance(dataset, DictConfig) else None
    return [names] if isinstance(names, str) else list(names or ())


def _describe_data(cfg: DictConfig, loader: Any) -> str:
    source = ", ".join(_dataset_names(cfg, "train"))
    if not source and "data" in cfg:
        given = cfg.data.train.get("json") or cfg.data.train.get("labels") or ""
        source = Path(given).name  # a folder is nobody else's business
    images, objects = (getattr(loader, key, None) for key in ("images", "objects"))
    if images is None:
        return source
    what = "label maps" if labels_pixels(cfg) else f"{objects} annotated objects"
    counts = f"{images} images with {what}"
    return f"{counts} ({source})" if source else counts


def config_of_adapter(told: AdapterConfig, source: str) -> DictConfig:
    """The config of this project that an adapter names, with the adapter's settings and classes.

    Raises:
        UserError: it names none, or none of this project; ``source`` names the adapter.
    """
    name = told.model.get("config") if told.framework == FRAMEWORK else None
    if not name:
        raise UserError(
            f"{source} names no config of this project (its model was built elsewhere): give the "
            "config it was trained with"
        )
    return adopt(load_config(_packaged_file(name, source)), told)


def adopt(cfg: DictConfig, told: AdapterConfig) -> DictConfig:
    """Give a config's model, in place, the backbone settings and the classes of an adapter."""
    backbone = cfg.model.backbone
    backbone.get("bottom_up", backbone).update(_backbone_settings(told))
    set_classes(cfg, told.classes)
    return cfg


def _packaged_file(name: Any, source: str) -> str:
    # A config file is Python: one from outside this package must never be run on a file's word.
    if isinstance(name, str) and name.endswith(".py") and PurePath(name).parts[0] != "common":
        with suppress(UserError):
            return get_config_file(name)
    raise UserError(
        f"{source} names the config {str(name)[:120]!r}, which is none of this project's: give the "
        "config it was trained with"
    )


def _backbone_settings(told: AdapterConfig) -> dict[str, Any]:
    own = told.backbone
    name = preset_name(own.preset)
    if name is None or not same_geometry(PRESETS[name], own.preset):
        name = LazyCall(make_preset)(**asdict(own.preset))
    return {
        "preset": name,
        "highway": LazyCall(highway_config)(**own.highway.to_dict()),
        "out_features": list(own.out_features),
    }


def make_preset(**geometry: Any) -> SwinPreset:
    """A geometry from what a config holds, which has lists for tuples."""
    lists = {k: tuple(geometry[k]) for k in ("depths", "num_heads")}
    return SwinPreset(**{**geometry, **lists})


def set_classes(cfg: DictConfig, classes: Sequence[str]) -> None:
    """Give a config's model as many classes as there are names, and the names where it has a place
    for them; without names it stays as it is."""
    if not classes:
        return
    if "data" in cfg:
        cfg.data.classes = list(classes)
    for node in (cfg.model.get("roi_heads"), cfg.model.get("sem_seg_head"), cfg.model):
        if isinstance(node, DictConfig) and "num_classes" in node:
            node.num_classes = len(classes)
            return
