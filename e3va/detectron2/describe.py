"""The description of a LazyConfig in adapter files, and the LazyConfig of such a description."""

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
from .config import bottom_up_node, load_config

FRAMEWORK = "detectron2"
USUAL_MOST = 100  # largest number of detections in an image, if a description has none


def describe_config(cfg: DictConfig, loader: Any = None) -> dict[str, Any]:
    """Return the keyword arguments of :func:`e3va.adapter_files.description.describe_model`."""
    # Configs on Detectron2's own "train" lack the name.
    model = {"config": cfg.train.get("config_name", "")}
    most = cfg.get("data", {}).get("max_detections", USUAL_MOST)
    if most != USUAL_MOST:
        model["max_detections"] = most
    return {
        "framework": FRAMEWORK,
        "model": model,
        "classes": output_classes(cfg),
        "trained_on": _describe_data(cfg, loader),
    }


def output_classes(cfg: DictConfig) -> tuple[str, ...]:
    """Return the class names in the order of the model's outputs; () if they are unknown."""
    metadata = find_metadata(cfg)
    kinds = ("stuff_classes",) if _labels_pixels(cfg) else ("thing_classes", "stuff_classes")
    return tuple(next((metadata.get(kind) for kind in kinds if metadata.get(kind)), ()))


def find_metadata(cfg: DictConfig, classes: Sequence[str] = ()) -> Metadata:
    """Return class names, by default those of the config's data, as ``Visualizer`` reads them."""
    classes = classes or ("data" in cfg and cfg.data.classes)
    if classes:
        kind = "stuff_classes" if _labels_pixels(cfg) else "thing_classes"
        return Metadata(**{kind: list(classes)})
    names = _dataset_names(cfg, "test")
    return MetadataCatalog.get(names[0]) if names else Metadata()


def _labels_pixels(cfg: DictConfig) -> bool:
    """Return whether the model only labels pixels, and finds no instances."""
    return "sem_seg_head" in cfg.model and "roi_heads" not in cfg.model


def _dataset_names(cfg: DictConfig, split: str) -> list[str]:
    dataset = cfg.get("dataloader", {}).get(split, {}).get("dataset", {})
    names = dataset.get("names") if isinstance(dataset, DictConfig) else None
    return [names] if isinstance(names, str) else list(names or ())


def _describe_data(cfg: DictConfig, loader: Any) -> str:
    source = ", ".join(_dataset_names(cfg, "train"))
    if not source and "data" in cfg:
        given = cfg.data.train.get("json") or cfg.data.train.get("labels") or ""
        source = Path(given).name  # the folder is private
    images, objects = (getattr(loader, key, None) for key in ("images", "objects"))
    if images is None:
        return source
    what = "label maps" if _labels_pixels(cfg) else f"{objects} annotated objects"
    counts = f"{images} images with {what}"
    return f"{counts} ({source})" if source else counts


def config_of_adapter(description: AdapterConfig | None, source: str) -> DictConfig:
    """Build the config of an adapter: the project's config that it names, with its own settings."""
    if description is None:
        raise UserError(
            f"{source} is not an adapter, so it names no config: give the config of its model"
        )
    name = description.model.get("config") if description.framework == FRAMEWORK else None
    if not name:
        raise UserError(
            f"{source} names no config of this project (its model was built elsewhere): give the "
            "config it was trained with"
        )
    # A config file is Python code: an adapter file must never choose code from elsewhere.
    file = ""
    if isinstance(name, str) and name.endswith(".py") and PurePath(name).parts[0] != "common":
        with suppress(UserError):
            file = get_config_file(name)
    if not file:
        raise UserError(
            f"{source} names the config {str(name)[:120]!r}, which is not in this project: give "
            "the config it was trained with"
        )
    return adopt(load_config(file), description)


def adopt(cfg: DictConfig, description: AdapterConfig) -> DictConfig:
    """Set the backbone settings and the classes of an adapter in a config, in place."""
    config = description.backbone
    node = bottom_up_node(cfg)
    set_preset(node, config.preset)
    node.highway = LazyCall(highway_config)(**config.highway.to_dict())
    node.out_features = list(config.out_features)
    most = description.model.get("max_detections", USUAL_MOST)
    if "max_detections" in cfg.get("data", {}) and isinstance(most, int):
        cfg.data.max_detections = most
    set_classes(cfg, description.classes)
    return cfg


def set_preset(node: DictConfig, preset: SwinPreset) -> None:
    """Set the geometry in a backbone's node: by its name, or in full if it has none."""
    name = preset_name(preset)
    named = name is not None and same_geometry(PRESETS[name], preset)
    node.preset = name if named else LazyCall(make_preset)(**asdict(preset))


def make_preset(**geometry: Any) -> SwinPreset:
    """Build a geometry from the values in a config, which has lists in place of tuples."""
    lists = {k: tuple(geometry[k]) for k in ("depths", "num_heads")}
    return SwinPreset(**{**geometry, **lists})


def set_classes(cfg: DictConfig, classes: Sequence[str]) -> None:
    """Set the class names of a config and their number in its model; no names change nothing."""
    if not classes:
        return
    if "data" in cfg:
        cfg.data.classes = list(classes)
    for node in (cfg.model.get("roi_heads"), cfg.model.get("sem_seg_head"), cfg.model):
        if isinstance(node, DictConfig) and "num_classes" in node:
            node.num_classes = len(classes)
            return
