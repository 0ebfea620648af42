"""The ways of tuning that are measured, and their backbones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from e3va import E3VABackbone
from e3va.swin.presets import get_preset
from e3va.utils.errors import UserError
from e3va.utils.seeding import seed_everything


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        title: name in tables; ``{rank}`` is filled in.
        highway: recipe or mapping, see :class:`e3va.E3VABackbone`.
        memory: memory mode, see there.
        ranked: whether the rank of the command is the adapters' rank.
        framework: the only framework that has the method; None for both.
    """

    title: str
    highway: str | Mapping[str, str] = "e3va_chain"
    memory: str = "standard"
    ranked: bool = False
    framework: str | None = None


def _inside(kind: str) -> dict[str, str]:
    return {"adapter": kind, "placement": "inside"}


METHODS = {
    "full": Method("full fine-tuning", "full", "plain"),
    "frozen": Method("frozen backbone", "frozen"),
    "lora": Method("LoRA, rank {rank}", _inside("lora"), "plain", True),
    "bottleneck": Method("bottleneck adapters, rank {rank}", _inside("bottleneck"), "plain", True),
    "e3va_chain plain": Method("E³VA, reference path", memory="plain"),
    "e3va_chain": Method("E³VA"),
    "e3va_chain lean": Method("E³VA, lean", memory="lean"),
    "e3va_wide": Method("E³VA, wide", "e3va_wide"),
    "frozen plain": Method("frozen backbone, reference path", "frozen", "plain"),
    "e3va": Method("E³VA as in the paper", "e3va"),
    "e3va plain": Method("E³VA as in the paper, reference path", "e3va", "plain"),
    "full detectron2": Method("full, Detectron2's own Swin", framework="detectron2"),
}
DEFAULT = (
    *("full", "frozen", "lora", "bottleneck"),
    *("e3va_chain plain", "e3va_chain", "e3va_chain lean", "e3va_wide"),
)
REFERENCE = "full"  # the method by which the others are divided


def choose(names: list[str], framework: str) -> list[str]:
    """Return the names of methods, the reference first; ``frozen-plain`` is ``frozen plain``.

    Raises:
        UserError: a method is unknown, or the framework does not have it.
    """
    names = list(dict.fromkeys(name.replace("-", " ") for name in names))
    for name in names:
        if name not in METHODS:
            raise UserError(f"method {name!r}: expected some of {', '.join(METHODS)}")
        only = METHODS[name].framework
        if only and framework != only:
            raise UserError(
                f"method {name!r} needs --framework {only}: the framework given is {framework}"
            )
    return sorted(names, key=lambda name: name != REFERENCE)


def make_bottom_up(
    name: str, preset: str, rank: int, kind: type[E3VABackbone] = E3VABackbone
) -> nn.Module:
    """Build a method's backbone.

    All methods get the same weights in the trunk. The random generators are in the same state
    afterwards, so that neck and heads are equal too.
    """
    method = METHODS[name]
    seed_everything("trunk", 0)
    if method.framework == "detectron2":
        backbone = _detectron2_swin(preset)
    else:
        highway = {**method.highway, "rank": rank} if method.ranked else method.highway
        backbone = kind(preset, highway, memory=method.memory)
    seed_everything("heads", 0)
    return backbone


def _detectron2_swin(name: str) -> nn.Module:
    from detectron2.modeling import SwinTransformer

    preset, ours = get_preset(name), E3VABackbone(name, "full")
    swin = SwinTransformer(
        embed_dim=preset.embed_dim,
        depths=list(preset.depths),
        num_heads=list(preset.num_heads),
        window_size=preset.window,
        drop_path_rate=0.0,
        out_indices=[0, 1, 2, 3],
    )
    swin.load_state_dict({_detectron2_name(k): v for k, v in ours.state_dict().items()}, False)
    return swin


def _detectron2_name(key: str) -> str:
    return re.sub(r"highway\.stages\.(\d)\.out_norm", r"norm\1", key).removeprefix("trunk.")
