"""``e3va convert``: a whole model → its adapter, and an adapter and its trunk → the whole model.

Nothing is lost either way: all tensors come back to the bit. Models of the other framework are plain
dicts here.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..adapter_files.description import AdapterConfig
from ..adapter_files.files import (
    CONFIG_FILE,
    FULL_KEY,
    MODEL_FILE,
    backbone_part,
    is_adapter,
    merge,
    read_adapter,
    split,
    write_adapter,
)
from ..backbone import BackboneConfig
from ..model_zoo.trunks import find_trunk_of, read_trunk_file
from ..swin.trunk import SwinTrunk
from ..torchvision.description import FRAMEWORK, about, why_no_adapter
from ..torchvision.loading import find_saved
from ..torchvision.models import DEMO_TRUNK, ModelConfig
from ..utils.atomic import save_atomically
from ..utils.errors import UserError
from ..utils.measure import MIB
from ..weights.checkpoint import load_file, model_state
from ..weights.loading import load_trunk
from ..weights.origin import TrunkOrigin, round_as

_HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def convert(args: Namespace) -> None:
    """``e3va convert``."""
    path, output = find_saved(args.input), Path(args.output).expanduser()
    if (path.is_dir() or is_adapter(path)) and args.backbone_only:
        _write(*read_adapter(path), output, args, path)
    elif path.is_dir() or is_adapter(path):
        _to_whole(path, output, args)
    else:
        _to_adapter(path, output, args)


def _to_whole(path: Path, output: Path, args: Namespace) -> None:
    if output.suffix not in (".pth", ".pt") or output.is_dir():
        raise UserError(f"--output {output}: expected the name of a file, as model.pth")
    _check_free(output, (output,), args.force)
    adapter, config = read_adapter(path)
    folder = path if path.is_dir() else path.parent
    trunk, source = find_trunk_of(config, args.trunk, folder)
    state = merge(adapter, config, trunk, source, any_trunk=args.any_trunk)
    data: dict[str, Any] = {"model": state, FULL_KEY: config.to_dict()}
    if config.framework == FRAMEWORK:
        data["config"] = ModelConfig.from_dict(config.model, str(path)).to_dict()
        data["data"] = {"summary": config.trained_on}
        data["step"], data["scores"] = config.steps, config.scores
    _make_parent(output)
    save_atomically(data, output)
    reader = {FRAMEWORK: "e3va", "detectron2": "Detectron2"}.get(config.framework, "torch.load")
    print(f"wrote {output} ({_size(output)}): the whole model, for {reader}")


def _to_adapter(path: Path, output: Path, args: Namespace) -> None:
    data = load_file(path)
    state = model_state(data, str(path))
    adapter, config = split(data, state, str(path))
    recorded, trunk = FULL_KEY in data, args.trunk
    if isinstance(data.get("config"), Mapping):
        own = _own_config(data["config"], str(path))
        if not recorded:  # written before there were adapter files
            config = _describe_as(config, own, data)
            named = own.trunk == DEMO_TRUNK or Path(own.trunk).is_file()
            trunk = trunk or (own.trunk if named else None)
    if trunk:
        config = _on_trunk(config, state, trunk, str(path), recorded)
    elif not recorded:
        raise UserError(
            f"{path} does not say which pretrained trunk it was trained on: give that with "
            "--trunk FILE"
        )
    _write(adapter, config, output, args, path)
    if "optimizer" in data:
        print("the optimizer's state is left out: keep the file to go on with the training")


def _write(
    state: Mapping[str, Tensor], config: AdapterConfig, output: Path, args: Namespace, path: Path
) -> None:
    files = tuple(output / name for name in (MODEL_FILE, CONFIG_FILE))
    if output.is_file():
        raise UserError(f"--output {output} is a file: expected a folder for the adapter's files")
    _check_free(output, files, args.force)
    what = "all but"
    if args.backbone_only:
        (state, config), what = backbone_part(state, config), "the highway alone, for"
    source = (path / MODEL_FILE, path / CONFIG_FILE) if path.is_dir() else (path,)
    before = _size(*source)
    _make_parent(files[0])
    write_adapter(state, config, output)
    print(
        f"wrote {output} ({_size(*files)} in place of {before}): {what} the trunk "
        f"{config.trunk.source} (fingerprint {config.trunk.short})"
    )


def _own_config(data: Mapping[str, Any], source: str) -> ModelConfig:
    config = ModelConfig.from_dict(dict(data), source)
    reason = why_no_adapter(config)
    if reason:
        raise UserError(f"{source} has no adapter: {reason}")
    return config


def _describe_as(config: AdapterConfig, own: ModelConfig, data: Mapping[str, Any]) -> AdapterConfig:
    """What was read off a model's tensors, with what its checkpoint of this framework says."""
    backbone = BackboneConfig(own.preset, own.highway)
    summary = (data.get("data") or {}).get("summary", "")
    said = about(own, summary, data.get("step"), data.get("scores"))
    return replace(config, backbone=backbone, **said)


def _on_trunk(
    config: AdapterConfig, state: Mapping[str, Tensor], given: str, source: str, recorded: bool
) -> AdapterConfig:
    """The description of an adapter with the trunk ``given``, which is compared to the bit.

    Raises:
        UserError: it is not the trunk in ``state``.
    """
    trunk, name = read_trunk_file(given)
    inside = {k: v for k, v in state.items() if k.startswith(config.trunk_prefix)}
    halves = {_HALF[value.dtype] for value in inside.values() if value.dtype in _HALF}
    rest = halves.pop() if halves else "fp32"
    kept = (config.trunk.stored,) if recorded else (rest, f"int8 {rest}")
    for stored in kept:
        module = SwinTrunk(config.backbone.preset)
        load_trunk(module, trunk, name)
        origin = module.origin
        round_as(module, stored)
        own = {config.trunk_prefix + key: value for key, value in module.state_dict().items()}
        if own.keys() == inside.keys() and all(_same(own[k], inside[k]) for k in own):
            return replace(config, trunk=replace(origin, stored=stored))
    raise UserError(
        f"{source} was trained on "
        + (f"the trunk {_say(config.trunk)}" if recorded else "another trunk")
        + f" than {_say(origin)}: give that with --trunk FILE"
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _say(origin: TrunkOrigin) -> str:
    return f"{origin.source} (fingerprint {origin.short})"


def _check_free(output: Path, files: tuple[Path, ...], force: bool) -> None:
    if not force and any(file.exists() for file in files):
        raise UserError(f"--output {output} is there already: add --force to overwrite it")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: {path.parent} cannot be made: {error.strerror}") from None


def _size(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / MIB:.1f} MiB"
