"""Pretrained Swin weights into a trunk, from whichever library they come.

The layout of a file, see :mod:`e3va.weights.layouts`, is recognised by its keys, and the size of the Swin
in it is read off its tensors: a wrong file is known by what it holds and not by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..swin.modules import PATCH
from ..swin.presets import SwinPreset, preset_name
from ..swin.trunk import SwinTrunk
from ..utils.errors import UserError
from .layouts import LAYOUTS, Layout, find_swins, other_network, to_official
from .origin import TrunkOrigin, fingerprint

# The Swin that is meant in a file of several: of this library's models, of Detectron2's, of
# mmdetection's and other detectors, a model of its own.
_PREFERRED = ("backbone.bottom_up.trunk.", "backbone.bottom_up.", "backbone.", "")
_TABLE = "attn.relative_position_bias_table"
DEMO = "demo"  # the demonstration's trunk, which comes with the library
DEMO_FILE = Path(__file__).parent.parent / "assets" / "swin_micro.safetensors"
_SUFFIXES = (".pth", ".pt", ".bin", ".pkl", ".pyth", ".safetensors")


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_trunk` has done.

    Attributes:
        tensors: how many of the trunk's tensors were loaded: all.
        layout: the library whose names the file had.
        notes: sentences for people about what was changed on the way.
    """

    tensors: int
    layout: str
    notes: tuple[str, ...] = ()


def find_trunk(state: Mapping[str, Tensor], source: str = "the file") -> str | None:
    """The prefix of the Swin's keys in ``state`` (``""``, ``"backbone."``, …), None without one.

    Raises:
        UserError: several different Swins, none of which is the likely one by its prefix.
    """
    found = find_swins(state)
    if len(found) <= 1 or _all_equal(state, found):
        return next(iter(found), None)
    for prefix in _PREFERRED:
        if prefix in found:
            return prefix
    raise UserError(
        f"{source} holds {len(found)} Swins with different weights, under the prefixes "
        f"{', '.join(sorted(found))}: save the tensors of the one that is meant alone"
    )


def _all_equal(state: Mapping[str, Tensor], found: Mapping[str, Layout]) -> bool:
    first, *others = (to_official(state, prefix, layout) for prefix, layout in found.items())
    return all(
        first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)
        for other in others
    )


def missing_trunk(state: Mapping[str, Tensor], source: str) -> UserError:
    """The error that says what ``source`` holds where :func:`find_trunk` found no Swin."""
    other = other_network(state)
    return UserError(
        f"{source} lacks the trunk: "
        + (f"it holds {other}; " if other else f"none of its {len(state)} tensors is a Swin's; ")
        + "give a pretrained Swin Transformer (the first version; of the official repository, "
        "Detectron2, mmdetection, torchvision, timm or transformers), or a checkpoint with its "
        "trunk"
    )


def trunk_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The trunk's own tensors of ``state`` under the official names, without derived buffers.

    Args:
        state: a state dict of any of :data:`e3va.weights.layouts.LAYOUTS`.
        prefix: as :func:`find_trunk` gives it.
    """
    return to_official(state, prefix, _layout(state, prefix))


def _layout(state: Mapping[str, Tensor], prefix: str) -> Layout:
    official = next(layout for layout in LAYOUTS if layout.name == "official")
    return next((layout for layout in LAYOUTS if layout.fits(state, prefix)), official)


def read_geometry(trunk: Mapping[str, Tensor], source: str) -> SwinPreset:
    """Read a Swin's geometry off its tensors, see :func:`trunk_state`.

    Raises:
        UserError: the tensors are not those of a Swin with windows of one size.
    """
    try:
        embedding = trunk["patch_embed.proj.weight"]
        if embedding.shape != (embedding.shape[0], 3, PATCH, PATCH):
            raise UserError(
                f"{source}: its Swin's patch embedding is {list(embedding.shape)}: expected "
                f"[C, 3, {PATCH}, {PATCH}], of colour images"
            )
        depths, stage = [], "layers.0.blocks."
        while f"{stage}0.norm1.weight" in trunk:
            depths.append(len({k.split(".")[3] for k in trunk if k.startswith(stage)}))
            stage = f"layers.{len(depths)}.blocks."
        window = _read_window(trunk, source)
        heads = [trunk[f"layers.{s}.blocks.0.{_TABLE}"].shape[1] for s in range(len(depths))]
        return SwinPreset(
            embed_dim=embedding.shape[0],
            depths=tuple(depths),
            num_heads=tuple(heads),
            window=window,
            pretrain_size=_read_grid(trunk, source) * PATCH,
            absolute_position="absolute_pos_embed" in trunk,
            mlp_ratio=trunk["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / embedding.shape[0],
        )
    except (LookupError, ArithmeticError) as error:
        raise UserError(f"{source}: its Swin lacks {error}; expected a whole Swin") from None


def _read_window(trunk: Mapping[str, Tensor], source: str) -> int:
    """The side of the windows in tokens, the same in all blocks."""
    tables = {name: table for name, table in trunk.items() if name.endswith(_TABLE)}
    windows = {}
    for name, table in tables.items():
        side = round(table.shape[0] ** 0.5)
        if table.dim() != 2 or side**2 != table.shape[0] or side % 2 == 0:
            raise UserError(
                f"{source}: its Swin's {name} is {list(table.shape)}: expected "
                "[(2 window - 1)², heads], of square windows"
            )
        windows[(side + 1) // 2] = name
    if len(windows) > 1:
        raise UserError(
            f"{source}: its Swin has windows of {' and '.join(map(str, sorted(windows)))} tokens; "
            "expected one size in all blocks"
        )
    return next(iter(windows), 0)


def _read_grid(trunk: Mapping[str, Tensor], source: str) -> int:
    """The side of the absolute position embedding's grid, 0 without one."""
    position = trunk.get("absolute_pos_embed")
    if position is None:
        return 0
    if position.dim() != 4 or position.shape[2] != position.shape[3]:
        raise UserError(
            f"{source}: its Swin's absolute position embedding is {list(position.shape)}: expected "
            "that of a square grid, [1, T, C] or [1, C, √T, √T]"
        )
    return position.shape[-1]


def _describe(preset: SwinPreset) -> str:
    ratio = "" if preset.mlp_ratio == 4 else f", mlp_ratio {preset.mlp_ratio:g}"
    name = preset_name(preset)
    return f"{name} ({preset})" if name else f"{preset}{ratio}"


def check_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> None:
    """Check that ``state`` (see :func:`trunk_state`) is of the trunk's size and complete.

    Raises:
        UserError: a Swin of another size or window, or tensors that are missing, superfluous or
            no numbers with a fraction.
    """
    found = read_geometry(state, source)
    wanted = trunk.preset
    if not wanted.absolute_position:
        wanted = replace(wanted, pretrain_size=0)
    if found != wanted:
        hint = preset_name(found)
        raise UserError(
            f"{source} holds the Swin {_describe(found)}, but the model's trunk is "
            f"{_describe(trunk.preset)}: "
            + (f'use preset="{hint}" or ' if hint else "")
            + "give weights of the model's own size"
        )
    _check_tensors(trunk.state_dict(), state, source)


def _check_tensors(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for what, keys in (("lacks", missing), ("has unknown", extra)):
        if keys:
            raise UserError(
                f"{source} {what} {len(keys)} of the trunk's {len(own)} tensors ({keys[0]}, …): "
                "expected a whole Swin"
            )
    for name, value in state.items():
        if value.shape != own[name].shape or not value.is_floating_point():
            raise UserError(
                f"{source}: its {name} is {list(value.shape)} of {value.dtype}: expected "
                f"{list(own[name].shape)} of a floating-point type"
            )


def load_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> Loaded:
    """Load pretrained Swin weights into ``trunk`` and record in ``trunk.origin`` which they are.

    Tables of relative positions for another window, and a grid of absolute positions of another
    size, are interpolated; so says a note in what is returned.

    Args:
        state: a state dict that contains a Swin under any prefix, as any of
            :data:`e3va.weights.layouts.LAYOUTS` has it; the classifier and other parts of it are left
            aside. Its tensors may be of any floating-point type.
        source: names the file in errors and in the origin.

    Raises:
        UserError: no Swin in ``state``, one of another size, or an incomplete one. The trunk is
            then as it was.
    """
    prefix = find_trunk(state, source)
    if prefix is None:
        raise missing_trunk(state, source)
    layout = _layout(state, prefix)
    own = to_official(state, prefix, layout)
    notes = _interpolate(own, read_geometry(own, source), trunk.preset)
    check_trunk(trunk, own, source)
    trunk.load_state_dict(own)
    trunk.origin = TrunkOrigin(_source_name(source), fingerprint(own))
    return Loaded(len(own), layout.name, notes)


def _source_name(source: str) -> str:
    """A file's base name without its folder; a zoo's address or another text as it is."""
    path = Path(source)
    if "://" in source or not (path.is_file() or path.suffix in _SUFFIXES):
        return source
    return DEMO if path.resolve() == DEMO_FILE.resolve() else path.name


def _interpolate(
    state: dict[str, Tensor], found: SwinPreset, wanted: SwinPreset
) -> tuple[str, ...]:
    """Bring what depends on window and image size to the wanted sizes, if all else is equal.

    As Swin's own code does when it loads a checkpoint: bicubic, each head or channel for itself.

    Returns:
        a sentence for each kind that was interpolated.
    """
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
        state["absolute_pos_embed"] = _bicubic(
            state["absolute_pos_embed"], wanted.pretrain_size // PATCH
        )
        notes.append(
            f"its absolute position embedding, of images of {found.pretrain_size} pixels, was "
            f"interpolated to the model's {wanted.pretrain_size}, as Swin's own code does"
        )
    return tuple(notes)


def _bicubic(grid: Tensor, side: int) -> Tensor:
    """[1, channels, h, w] → [1, channels, side, side], in float32."""
    return F.interpolate(grid.float(), size=(side, side), mode="bicubic")
