"""Load pretrained Swin weights of any known layout into a trunk.

A file's keys determine its layout, and its tensors the size of the Swin.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..swin.modules import PATCH
from ..swin.presets import SwinPreset, preset_name, same_geometry
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .checkpoint import check_same_tensors
from .layouts import LAYOUTS, Layout, find_swins, other_network, to_official
from .origin import TrunkOrigin, fingerprint

# Prefixes in order of preference: the trunk of an E³VA model, the backbone of a Detectron2 model or
# of another detector, a model that is only a Swin.
_PREFERRED = ("backbone.bottom_up.trunk.", "backbone.bottom_up.", "backbone.", "")
_TABLE = "attn.relative_position_bias_table"
DEMO = "demo"  # name of the trunk that comes with the library
DEMO_FILE = Path(__file__).parent.parent / "assets" / "swin_mini.safetensors"
_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".pyth", ".safetensors")


@dataclass(frozen=True)
class Loaded:
    """Result of :func:`load_trunk`: number of tensors, file layout, notes on interpolated ones."""

    tensors: int
    layout: str
    notes: tuple[str, ...] = ()


def find_trunk(state: Mapping[str, Tensor], source: str = "the file") -> str | None:
    """Return the prefix of the Swin's keys, such as ``"backbone."``; None without a Swin."""
    found = find_swins(state)
    if len(found) <= 1 or _all_equal(state, found):
        return next(iter(found), None)
    for prefix in _PREFERRED:
        if prefix in found:
            return prefix
    raise UserError(
        f"{source} holds {len(found)} Swins with different weights, under the prefixes "
        f"{', '.join(sorted(found))}: expected one; save only the tensors of the one to load"
    )


def _all_equal(state: Mapping[str, Tensor], found: Mapping[str, Layout]) -> bool:
    first, *others = (to_official(state, prefix, layout) for prefix, layout in found.items())
    return all(
        first.keys() == o.keys() and all(torch.equal(first[k], o[k]) for k in o) for o in others
    )


def missing_trunk(state: Mapping[str, Tensor], source: str) -> UserError:
    """Return the error for a file in which :func:`find_trunk` found no Swin."""
    other = other_network(state) or f"{len(state)} tensors and no Swin"
    return UserError(
        f"{source} lacks the trunk: it holds {other}; expected a pretrained Swin Transformer "
        "(version 1) of the official repository, Detectron2, mmdetection, torchvision, timm or "
        "transformers, or a checkpoint that contains its trunk"
    )


def trunk_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the trunk behind ``prefix`` in ``state`` with the official names."""
    return to_official(state, prefix, _layout(state, prefix))


def _layout(state: Mapping[str, Tensor], prefix: str) -> Layout:
    fitting = (layout for layout in LAYOUTS if layout.fits(state, prefix))
    return next(fitting, Layout("official", ()))


def read_geometry(trunk: Mapping[str, Tensor], source: str) -> SwinPreset:
    """Read a Swin's geometry off the result of :func:`trunk_state`."""
    window = _read_window(trunk, source)
    depths, stage = [], "layers.0.blocks."
    while f"{stage}0.norm1.weight" in trunk:
        depths.append(len({k.split(".")[3] for k in trunk if k.startswith(stage)}))
        stage = f"layers.{len(depths)}.blocks."
    position = trunk.get("absolute_pos_embed")
    try:
        embed_dim = trunk["patch_embed.proj.weight"].shape[0]
        heads = [trunk[f"layers.{s}.blocks.0.{_TABLE}"].shape[1] for s in range(len(depths))]
        return SwinPreset(
            embed_dim,
            tuple(depths),
            tuple(heads),
            window,
            pretrain_size=0 if position is None else position.shape[-1] * PATCH,
            absolute_position=position is not None,
            mlp_ratio=trunk["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
        )
    except (LookupError, ArithmeticError) as error:
        raise UserError(f"{source}: its Swin lacks {error}; expected a whole Swin") from None


def _read_window(trunk: Mapping[str, Tensor], source: str) -> int:
    """Check the shapes that a geometry is read off, and return the side of the windows."""
    windows = set()
    for name, tensor in trunk.items():
        valid, size = True, list(tensor.shape)
        if name == "patch_embed.proj.weight":
            valid = size[1:] == [3, PATCH, PATCH]
            expected = f"[C, 3, {PATCH}, {PATCH}] for color images"
        elif name == "absolute_pos_embed":
            valid = len(size) == 4 and size[2] == size[3]
            expected = "a square grid, [1, T, C] or [1, C, √T, √T]"
        elif name.endswith(_TABLE):
            side = round(size[0] ** 0.5) if len(size) == 2 else 0
            valid = side % 2 == 1 and side**2 == size[0]
            expected = "[(2 window - 1)², heads] for square windows"
            windows.add((side + 1) // 2)
        if not valid:
            raise UserError(f"{source}: its Swin's {name} is {size}: expected {expected}")
    if len(windows) > 1:
        raise UserError(
            f"{source}: its Swin has windows of {' and '.join(map(str, sorted(windows)))} tokens; "
            "expected one size in all blocks"
        )
    return next(iter(windows), 0)


def check_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> None:
    """Check that a result of :func:`trunk_state` fits a trunk; raise a UserError if it does not."""
    found = read_geometry(state, source)
    if not same_geometry(trunk.preset, found):
        name, own = preset_name(found), preset_name(trunk.preset)
        raise UserError(
            f"{source} holds the Swin {f'{name} ({found})' if name else found}, but the model's "
            f"trunk is {f'{own} ({trunk.preset})' if own else trunk.preset}: "
            + (f"set the preset to {name}, or " if name else "")
            + "give weights of the model's own size"
        )
    check_same_tensors(trunk.state_dict(), state, source, "expected a whole Swin")
    for name, value in state.items():
        if not value.is_floating_point():
            raise UserError(f"{source}: {name} is of {value.dtype}: expected a floating-point type")


def load_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> Loaded:
    """Load pretrained Swin weights into a trunk and record their origin in ``trunk.origin``.

    ``state`` contains a Swin with any prefix, in any layout of :data:`LAYOUTS` and of any
    floating-point type. Position tables of another window or image size are interpolated; the
    result has a note about each. ``source`` is the name of the file.

    Raises:
        UserError: ``state`` holds no Swin that fits. The trunk then keeps its weights.
    """
    prefix = find_trunk(state, source)
    if prefix is None:
        raise missing_trunk(state, source)
    layout = _layout(state, prefix)
    own = to_official(state, prefix, layout)
    notes = _interpolate(own, read_geometry(own, source), trunk.preset)
    check_trunk(trunk, own, source)
    trunk.load_state_dict(own)
    trunk.origin = TrunkOrigin(source_name(source), fingerprint(own))
    return Loaded(len(own), layout.name, notes)


def source_name(source: str) -> str:
    """Return a file's name without its folder, or another text such as a zoo address unchanged."""
    path = Path(source)
    if "://" in source or not (path.is_file() or path.suffix in _SUFFIXES):
        return source
    return DEMO if path.resolve() == DEMO_FILE.resolve() else path.name


def _interpolate(
    state: dict[str, Tensor], found: SwinPreset, wanted: SwinPreset
) -> tuple[str, ...]:
    """Interpolate tensors to another window or image size; return a note for each kind."""
    if replace(found, window=wanted.window, pretrain_size=wanted.pretrain_size) != wanted:
        return ()
    notes = []
    if found.window != wanted.window:
        side = 2 * wanted.window - 1
        for name in [name for name in state if name.endswith(_TABLE)]:
            table = state[name]
            grid = table.T.unflatten(1, (2 * found.window - 1, -1))[None]
            state[name] = _bicubic(grid, side)[0].flatten(1).T.contiguous()
        notes.append(
            f"its relative position tables, of window {found.window}, were interpolated to the "
            f"model's window {wanted.window}, as Swin's own code does"
        )
    if wanted.absolute_position and found.pretrain_size != wanted.pretrain_size:
        side = wanted.pretrain_size // PATCH
        state["absolute_pos_embed"] = _bicubic(state["absolute_pos_embed"], side)
        notes.append(
            f"its absolute position embedding was interpolated from images of "
            f"{found.pretrain_size} pixels to the model's {wanted.pretrain_size}, as Swin's own "
            "code does"
        )
    return tuple(notes)


def _bicubic(grid: Tensor, side: int) -> Tensor:
    """Resize [1, channels, h, w] to [1, channels, side, side], in float32."""
    return F.interpolate(grid.float(), size=(side, side), mode="bicubic")
