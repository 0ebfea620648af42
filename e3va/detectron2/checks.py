"""The values that the known keys of a LazyConfig may have."""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from ..backbone import LEVELS, MEMORY
from ..highway.config import as_highway_config, highway_config
from ..swin.precision import PRECISIONS as TRUNK_PRECISIONS
from ..swin.presets import get_preset
from ..utils.errors import UserError
from ..utils.training import PRECISIONS

Rule = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value is that


def _whole(least: int) -> Rule:
    return f"a whole number of at least {least}", lambda v: type(v) is int and v >= least


def _number(text: str, fits: Callable[[float], bool]) -> Rule:
    return text, lambda v: type(v) in (int, float) and math.isfinite(v) and fits(v)


def _one_of(*names: str) -> Rule:
    return f"one of {', '.join(names)}", lambda v: isinstance(v, str) and v in names


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]}, or null", lambda v: v is None or rule[1](v)


def _list_of(text: str, fits: Callable[[Any], bool]) -> Rule:
    return text, lambda v: isinstance(v, list) and len(v) > 0 and all(map(fits, v))


def is_device(value: Any) -> bool:
    """Return whether a value is the name of a device, such as ``cuda:1``."""
    try:
        return isinstance(value, str) and bool(torch.device(value))
    except RuntimeError:
        return False


_COUNT, _AT_LEAST_0 = _whole(1), _whole(0)
_POSITIVE = _number("a number above 0", lambda v: v > 0)
_NOT_NEGATIVE = _number("a number of at least 0", lambda v: v >= 0)
_SWITCH: Rule = ("true or false", lambda v: isinstance(v, bool))
_TEXT: Rule = ("text, such as a path", lambda v: v is None or isinstance(v, str))
_SIZES = _list_of("a list of sizes in pixels to choose from, or one size", _COUNT[1])
_NAMES = _list_of("a list of names, such as [a,b]", lambda v: isinstance(v, str | int | float))
_PAIR = _list_of("a height and a width in pixels, such as [512, 512]", _COUNT[1])

RULES: dict[str, Rule] = {
    "train.max_iter": _COUNT,
    "train.eval_period": _AT_LEAST_0,
    "train.log_period": _COUNT,
    "train.checkpointer.period": _COUNT,
    "train.checkpointer.max_to_keep": _or_null(_COUNT),
    "train.accumulate": _COUNT,
    "train.clip_norm": _or_null(_NOT_NEGATIVE),
    "train.seed": ("a whole number", lambda v: type(v) is int),
    "train.amp.enabled": _SWITCH,
    "train.amp.dtype": _one_of(*PRECISIONS),
    "train.device": ("cpu, cuda or cuda:N", is_device),
    "train.adapter_parts": _one_of("all", "backbone"),
    "train.any_trunk": _SWITCH,
    "train.float32_precision": _one_of("", "highest", "high", "medium"),
    "train.output_dir": ("a folder", lambda v: isinstance(v, str) and v != ""),
    **{f"train.{key}": _TEXT for key in ("init_checkpoint", "trunk")},
    **{f"data.{s}.{k}": _TEXT for s in ("train", "val") for k in ("json", "images", "labels")},
    "data.train.short_edge": (_SIZES[0], lambda v: _COUNT[1](v) or _SIZES[1](v)),
    "data.train.crop": (_PAIR[0], lambda v: _PAIR[1](v) and len(v) == 2),
    "data.val.short_edge": _COUNT,
    "data.max_size": _COUNT,
    "data.class_area": _number("a number above 0 and at most 1", lambda v: 0 < v <= 1),
    "data.classes": _or_null(_NAMES),
    "data.max_detections": _COUNT,
    "data.val_split": _number("a share of the images from 0 to below 1", lambda v: 0 <= v < 1),
    **{f"data.{key}": _SWITCH for key in ("skip_missing", "use_crowds", "keep_empty")},
    "dataloader.train.total_batch_size": _COUNT,
    "dataloader.test.batch_size": _COUNT,
    **{f"dataloader.{split}.num_workers": _AT_LEAST_0 for split in ("train", "test")},
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.params.lr_factor_func.adapters": _POSITIVE,
    "lr_multiplier.warmup_length": _number("a number from 0 to 1", lambda v: 0 <= v <= 1),
}
AUTO = "auto"  # the preset that stands for the size of the weights in train.init_checkpoint
_BACKBONE_RULES: dict[str, Rule] = {
    "memory": _one_of(*MEMORY),
    "trunk_precision": _one_of(*TRUNK_PRECISIONS),
    "out_features": _list_of(f"some of {', '.join(LEVELS)}", lambda v: v in LEVELS),
}


def check_values(cfg: DictConfig, bottom_up: DictConfig) -> None:
    """Check the known keys of a config, and ``bottom_up`` if it is the node of an E³VA backbone."""
    for key, rule in RULES.items():
        _check(cfg, key, key, rule)
    if "preset" not in bottom_up or "memory" not in bottom_up:
        return
    where = "model.backbone.bottom_up"
    for key, rule in _BACKBONE_RULES.items():
        _check(bottom_up, key, f"{where}.{key}", rule)
    if callable_of(bottom_up.get("highway")) not in (None, highway_config):
        return  # a highway of the user's own
    try:
        preset, highway = _plain(bottom_up, "preset"), _plain(bottom_up, "highway", {})
        # A mapping is the geometry of an adapter or of weights, and has been checked.
        known = not isinstance(preset, dict) and preset != AUTO
        dim = get_preset(str(preset)).embed_dim if known else 96
        make_adapter = as_highway_config(highway).adapter_factory(dim)
        with torch.device("meta"):
            make_adapter and make_adapter(dim)  # the adapter kind checks its own options
    except UserError as error:
        raise UserError(f"{where}: {error.line}") from None


def callable_of(node: Any) -> Any:
    """Return what a LazyCall node calls; None for another node."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    return locate(target) if isinstance(target, str) else target


def _check(node: DictConfig, key: str, name: str, rule: Rule) -> None:
    expected, fits = rule
    value = _plain(node, key, {})
    if not isinstance(value, dict) and not fits(value):
        raise UserError(f"{name}={value}: expected {expected}")


def _plain(node: DictConfig, key: str, default: Any = None) -> Any:
    """Return a value as plain Python data, without the ``_target_`` of a LazyCall."""
    value = OmegaConf.select(node, key, default=default)
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        value.pop("_target_", None)
    return value
