"""The ways of tuning whose cost is measured, and the backbone that each of them trains."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accuracy.methods import bottleneck, lora
from torch import nn

from e3va import E3VABackbone
from e3va.swin.presets import get_preset
from e3va.swin.trunk import SwinTrunk
from e3va.utils.errors import UserError
from e3va.utils.seeding import seed_everything


@dataclass(frozen=True)
class Method:
    """A way of tuning.

    Attributes:
        title: for people; ``{rank}`` is filled in.
        settings: of :class:`e3va.E3VABackbone`.
        change: rank → a function that puts adapters into the trunk, which comes in trainable.
        framework: the only framework that has it; None for all.
    """

    title: str
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[int], Callable[[SwinTrunk], None]] | None = None
    framework: str | None = None


def lora_on_qkv(rank: int) -> Callable[[SwinTrunk], None]:
    """LoRA where its paper puts it: on the projections of the attention."""
    return lora(rank, target_modules=("qkv",))


FULL = {"method": "full", "memory": "plain"}
METHODS = {
    "full": Method("full fine-tuning", FULL),
    "frozen": Method("frozen backbone", {"method": "frozen"}),
    "lora": Method("LoRA on qkv, rank {rank}", FULL, lora_on_qkv),
    "bottleneck": Method("bottleneck adapters, rank {rank}", FULL, bottleneck),
    "e3va plain": Method("E³VA, reference path", {"method": "e3va", "memory": "plain"}),
    "e3va": Method("E³VA", {"method": "e3va", "memory": "standard"}),
    "e3va lean": Method("E³VA, lean", {"method": "e3va", "memory": "lean"}),
    "frozen plain": Method(
        "frozen backbone, reference path", {"method": "frozen", "memory": "plain"}
    ),
    "paper": Method("E³VA as in the paper", {"method": "paper", "memory": "standard"}),
    "paper plain": Method(
        "E³VA as in the paper, reference path", {"method": "paper", "memory": "plain"}
    ),
    "full detectron2": Method("full, Detectron2's own Swin", framework="detectron2"),
}
DEFAULT = ("full", "frozen", "lora", "bottleneck", "e3va plain", "e3va", "e3va lean")
REFERENCE = "full"  # what the others are divided by


def choose(names: list[str], framework: str) -> list[str]:
    """Methods by name, the reference first; ``e3va-lean`` is ``e3va lean``.

    Raises:
        UserError: there is no such method, or the framework lacks it.
    """
    names = list(dict.fromkeys(name.replace("-", " ") for name in names))
    for name in names:
        if name not in METHODS:
            raise UserError(f"method {name!r}: expected some of {', '.join(METHODS)}")
        only = METHODS[name].framework
        if only and framework != only:
            raise UserError(
                f"method {name!r} is measured with --framework {only} alone, not {framework}"
            )
    return sorted(names, key=lambda name: name != REFERENCE)


def make_bottom_up(
    name: str, preset: str, rank: int, kind: type[E3VABackbone] = E3VABackbone
) -> nn.Module:
    """A method's backbone. The trunk's weights are the same for all, and so is the state of the
    random numbers afterwards: what is built next is equal too."""
    method = METHODS[name]
    seed_everything("trunk", 0)
    if method.framework == "detectron2":
        backbone = _detectron2_swin(preset)
    else:
        backbone = kind(preset, **method.settings)
    if method.change:
        seed_everything("method", 0)
        method.change(rank)(backbone.trunk)
    seed_everything("heads", 0)
    return backbone


def _detectron2_swin(name: str) -> nn.Module:
    from detectron2.modeling import SwinTransformer

    preset, ours = get_preset(name), E3VABackbone(name, method="full")
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
