"""Configs: the keys for yacs; LazyConfig files found by name, overridden with checked keys."""

import ast
import difflib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..highway.config import DEFAULT_RECIPE
from ..utils.errors import UserError
from ..utils.paths import CONFIG_ROOT


def add_e3va_config(cfg: CfgNode) -> None:
    """Add the keys of the E³VA backbones to a yacs config, with their defaults.

    ``MODEL.E3VA`` has PRESET, HIGHWAY, MEMORY, TRUNK_PRECISION and OUT_FEATURES, the arguments of
    :class:`e3va.E3VABackbone`. HIGHWAY holds RECIPE and any setting of
    :func:`e3va.highway.config.highway_config` in capitals, such as RANK or TAPS. OUT_FEATURES is
    for the bare backbone; with an FPN, ``MODEL.FPN.IN_FEATURES`` selects the levels.
    """
    cfg.MODEL.E3VA = CfgNode()
    cfg.MODEL.E3VA.PRESET = "swin_t"
    cfg.MODEL.E3VA.HIGHWAY = CfgNode({"RECIPE": DEFAULT_RECIPE}, new_allowed=True)
    cfg.MODEL.E3VA.MEMORY = "standard"
    cfg.MODEL.E3VA.TRUNK_PRECISION = "auto"
    cfg.MODEL.E3VA.OUT_FEATURES = ["p0", "p1", "p2", "p3"]


def find_config(name: str | os.PathLike) -> Path:
    """Find a config file: a path, or a name below the project's ``configs`` folder.

    Raises:
        UserError: there is no such file; the text names the nearest ones.
    """
    for path in (Path(name), CONFIG_ROOT / name):
        if path.is_file():
            return path
    files = (path.relative_to(CONFIG_ROOT) for path in CONFIG_ROOT.rglob("*.py"))
    known = sorted(str(path) for path in files if path.parts[0] != "common")
    nearest = difflib.get_close_matches(str(name), known, n=2, cutoff=0.4)
    raise UserError(
        f"no config file {str(name)!r}: expected a path or one of the project's configs, "
        f"nearest: {', '.join(nearest or known[:2])}"
    )


def load_config(
    config: str | os.PathLike | DictConfig, overrides: Iterable[str] = ()
) -> DictConfig:
    """Load a LazyConfig and apply ``key=value`` overrides.

    Args:
        config: a path, a name below the project's ``configs`` folder, or a config object, which is
            left as it is.
        overrides: see :func:`apply_overrides`.

    Raises:
        UserError: no such file, a file that cannot be read as a config, or a wrong override.
    """
    if isinstance(config, DictConfig):
        cfg = config.copy()
    else:
        path = find_config(config)
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
        _keep_name(cfg, path)
    return apply_overrides(cfg, overrides)


def _keep_name(cfg: DictConfig, path: Path) -> None:
    """Note in a config which of the project's it is, for those who get what is trained with it."""
    path, root = path.resolve(), CONFIG_ROOT.resolve()
    if path.is_relative_to(root) and isinstance(cfg.get("train"), DictConfig):
        cfg.train.config_name = path.relative_to(root).as_posix()


def apply_overrides(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Set ``key=value`` overrides in place.

    A value is read as a Python or YAML literal (``1e-4``, ``[320, 400]``, ``true``, ``null``), else
    as text. A key must exist, or name an argument of the callable that its config node calls.

    Raises:
        UserError: an override without ``=``, or a key that does not exist; the text names the
            nearest key.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r}: expected key=value, e.g. train.max_iter=500")
        _check_key(cfg, key)
        try:
            OmegaConf.update(cfg, key, parse_value(text), merge=True)
        except OmegaConfBaseException as error:
            raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from None
    return cfg


def parse_value(text: str) -> Any:
    """Read an override's value; what is no literal is text."""
    for read in (ast.literal_eval, yaml.safe_load):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(value, (bool, int, float, list, tuple, dict, str, type(None))):
            return list(value) if isinstance(value, tuple) else value
    return text


def _check_key(cfg: DictConfig, key: str) -> None:
    node = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            choices = [str(index) for index in range(len(node))]
        elif isinstance(node, DictConfig):
            choices = [str(name) for name in node] + _arguments(node)
            if not node:
                return  # an empty dict is there to be filled, as optimizer.params.overrides is
        else:
            choices = []
        if part not in choices:
            parent = ".".join(parts[:depth])
            raise UserError(
                f"no config key {key!r}: "
                + _nearest(cfg, key, part, parent, choices)
                + "; see the config file for all keys"
            )
        node = _child(node, part)


def _child(node: DictConfig | ListConfig, part: str) -> Any:
    if isinstance(node, ListConfig):
        return node[int(part)]
    return node.get(part) if part in node else None


def _arguments(node: DictConfig) -> list[str]:
    """Names of the keyword arguments that a LazyCall node's callable takes."""
    target = node.get("_target_")
    if isinstance(target, str):
        target = locate(target)
    if not callable(target):
        return []
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _nearest(cfg: DictConfig, key: str, part: str, parent: str, choices: list[str]) -> str:
    siblings = difflib.get_close_matches(part, choices, n=1, cutoff=0.6)
    if siblings:
        return f"nearest: {'.'.join(filter(None, (parent, siblings[0])))!r}"
    anywhere = difflib.get_close_matches(key, list(_all_keys(cfg)), n=1, cutoff=0.0)
    return f"nearest: {anywhere[0]!r}" if anywhere else "the config is empty"


def _all_keys(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, DictConfig):
        for name in node:
            if name != "_target_":
                yield f"{prefix}{name}"
                if not OmegaConf.is_interpolation(node, name):
                    yield from _all_keys(node.get(name), f"{prefix}{name}.")
