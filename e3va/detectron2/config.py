"""Configs: keys for yacs; LazyConfig files by name, with overrides whose keys are checked."""

import ast
import difflib
import inspect
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..highway.config import DEFAULT_RECIPE, HighwayConfig, highway_config
from ..highway.registry import adapter_kinds, get_adapter_kind
from ..model_zoo import get_config_file
from ..utils.errors import UserError
from ..utils.paths import CONFIG_ROOT
from .checks import RULES, callable_of, check_values

_SETTINGS = ("recipe", *(f.name for f in fields(HighwayConfig) if f.name != "options"))
# Overrides of these keys come first, because they replace what other overrides change.
_FIRST = ("highway", "recipe", "adapter")


def add_e3va_config(cfg: CfgNode) -> None:
    """Add the keys of the E³VA backbones to a yacs config, with their defaults.

    ``MODEL.E3VA`` has PRESET, HIGHWAY, MEMORY, TRUNK_PRECISION and OUT_FEATURES, the arguments of
    :class:`e3va.E3VABackbone`. HIGHWAY holds the arguments of :func:`e3va.highway_config` in
    capitals, such as RECIPE or RANK; None stands for the recipe's own value. With an FPN,
    ``MODEL.FPN.IN_FEATURES`` selects the levels instead of OUT_FEATURES.
    """
    options = [option for kind in adapter_kinds().values() for option in kind.defaults]
    highway = {name.upper(): None for name in (*_SETTINGS, *options)}
    cfg.MODEL.E3VA = node = CfgNode({"PRESET": "swin_t", "MEMORY": "standard"})
    node.TRUNK_PRECISION, node.OUT_FEATURES = "auto", ["p0", "p1", "p2", "p3"]
    node.HIGHWAY = CfgNode({**highway, "RECIPE": DEFAULT_RECIPE}, new_allowed=True)


def find_config(name: str | os.PathLike) -> Path:
    """Find a config file by its path, or by its name below the project's ``configs`` folder."""
    return Path(name if os.path.isfile(name) else get_config_file(str(name)))


def load_config(
    config: str | os.PathLike | DictConfig, overrides: Iterable[str] = ()
) -> DictConfig:
    """Load a LazyConfig, apply ``key=value`` overrides, and check the values of known keys.

    Args:
        config: a path, a name below the project's ``configs`` folder, or a config object, which
            does not change.
        overrides: see :func:`apply_overrides`.

    Raises:
        UserError: the file is missing or is no LazyConfig, or an override or a value is wrong.
    """
    cfg = config.copy() if isinstance(config, DictConfig) else read_config(find_config(config))
    if "tasks" in cfg:
        raise UserError(
            f"the config has several tasks ({', '.join(cfg.tasks)}), which the training script "
            f"trains together; here give the config of one: {', '.join(cfg.tasks.values())}"
        )
    return apply_overrides(cfg, overrides)


def read_config(path: Path) -> DictConfig:
    """Read a LazyConfig file; raise UserError if it is none, or of another version."""
    try:
        cfg = LazyConfig.load(str(path))
    except (SyntaxError, ValueError, yaml.YAMLError, ImportError) as error:
        cause = error.__cause__ or error
        raise UserError(f"{path} cannot be read as a LazyConfig file: {cause}") from None
    if "MODEL" in cfg:
        raise UserError(
            f"{path} is a yacs config: use it with get_cfg(), add_e3va_config() and "
            "DefaultPredictor; here a LazyConfig file is expected"
        )
    path, root = path.resolve(), CONFIG_ROOT.resolve()
    if path.is_relative_to(root) and isinstance(cfg.get("train"), DictConfig):
        cfg.train.config_name = path.relative_to(root).as_posix()  # adapter files repeat it
    if "method" in bottom_up_node(cfg):
        raise UserError(
            f"{path} has a backbone with the argument 'method', as e3va 0.1 wrote it: expected "
            "'highway'; use that version of e3va, or start from a config of this one"
        )
    return cfg


def bottom_up_node(cfg: DictConfig) -> DictConfig:
    """Return the node of the backbone below the FPN, or of the backbone without an FPN."""
    backbone = OmegaConf.select(cfg, "model.backbone")
    if not isinstance(backbone, DictConfig):
        return OmegaConf.create({})
    return backbone.get("bottom_up", backbone)


def apply_overrides(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Set ``key=value`` overrides in place and check the values of known keys.

    A value is read as a Python or YAML literal (``1e-4``, ``[320, 400]``, ``true``, ``null``), or
    else as text. A key must exist, or name an argument of the callable of its config node. A new
    ``recipe`` replaces all settings of a highway, and a new ``adapter`` replaces the options of the
    previous adapter kind, in whatever order the overrides come.

    Raises:
        UserError: an override is a flag or has no ``=``, its key does not exist (the message names
            the nearest key), or a value has the wrong type or is out of range.
    """
    for override in sorted(overrides, key=_rank):
        if override.startswith("-"):
            raise UserError(
                f"{override} after key=value: expected flags before the overrides; move it there"
            )
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: expected key=value, e.g. train.max_iter=500")
        _check_key(cfg, key)
        value = parse_value(text)
        _check_type(cfg, key, value)
        _drop_replaced(cfg, key)
        try:
            OmegaConf.update(cfg, key, value, merge=True)
        except OmegaConfBaseException as error:
            raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from None
    check_values(cfg, bottom_up_node(cfg))
    return cfg


def _rank(override: str) -> int:
    """Return the place of an override in the order in which overrides apply."""
    name = override.partition("=")[0].rpartition(".")[2]
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def parse_value(text: str) -> Any:
    """Read the value of an override; text that is no literal stays text."""
    for read in (ast.literal_eval, yaml.safe_load):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(value, (bool, int, float, list, tuple, dict, str, type(None))):
            return list(value) if isinstance(value, tuple) else value
    return text


def _check_type(cfg: DictConfig, key: str, value: Any) -> None:
    """Check that text does not replace a number, and that a switch stays a switch."""
    old = None if key in RULES else OmegaConf.select(cfg, key)
    if isinstance(old, bool) and not isinstance(value, bool):
        raise UserError(f"{key}={value}: expected true or false")
    if type(old) in (int, float) and isinstance(value, str | bool):
        raise UserError(f"{key}={value}: expected a number such as {old}")


def _drop_replaced(cfg: DictConfig, key: str) -> None:
    """Drop what a new recipe or a new adapter kind replaces in the node of a highway."""
    parent, _, name = key.rpartition(".")
    if name not in ("recipe", "adapter"):
        return
    node = OmegaConf.select(cfg, parent)
    if callable_of(node) is highway_config:
        kept = ("_target_",) if name == "recipe" else ("_target_", *_SETTINGS)
        for other in [other for other in node if other not in kept]:
            del node[other]


def has_key(cfg: DictConfig, key: str) -> bool:
    """Return whether a config has a key, or takes it as an argument of a node's callable."""
    try:
        _check_key(cfg, key)
    except UserError:
        return False
    return True


def _check_key(cfg: DictConfig, key: str) -> None:
    """Check that a key exists, or that the callable of its node has such an argument."""
    node, parts = cfg, key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, DictConfig) and not node:
            return  # an empty dict is there to be filled, as optimizer.params.overrides is
        if isinstance(node, ListConfig):
            children = list(map(str, range(len(node))))
        else:
            children = [*node, *_arguments(node)] if isinstance(node, DictConfig) else []
        if part not in children:
            siblings = difflib.get_close_matches(part, children, n=1, cutoff=0.6)
            near = [".".join([*parts[:depth], *siblings])] if siblings else _all_keys(cfg)
            nearest = difflib.get_close_matches(key, list(near), n=1, cutoff=0.0)
            hint = f"nearest: {nearest[0]!r}" if nearest else "the config is empty"
            raise UserError(f"no config key {key!r}: {hint}; see the config file for all keys")
        node = node[int(part)] if isinstance(node, ListConfig) else node.get(part)


def _arguments(node: DictConfig) -> list[str]:
    """Return the names of the keyword arguments that a LazyCall node's callable takes."""
    target = callable_of(node)
    if target is highway_config:
        changes = {"adapter": node.adapter} if "adapter" in node else {}
        adapter = highway_config(node.get("recipe", DEFAULT_RECIPE), **changes).adapter
        return [*_SETTINGS, *(get_adapter_kind(adapter).defaults if adapter else ())]
    if not callable(target):
        return []
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for name in node:
            if name != "_target_":
                yield f"{prefix}{name}"
                if not OmegaConf.is_interpolation(node, name):
                    yield from _all_keys(node.get(name), f"{prefix}{name}.")
