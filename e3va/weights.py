"""Pretrained Swin weights into a trunk, with the official key names.

The size of the Swin in a file is read off its tensors, so that a wrong file is recognised by what
it holds and not by its name.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from .errors import UserError
from .presets import SwinPreset, preset_name
from .trunk import PATCH, SwinTrunk

_MARK = "patch_embed.proj.weight"
_QKV = "layers.0.blocks.0.attn.qkv.weight"
# Derived from the geometry; published files carry them as buffers.
_DERIVED = ("relative_position_index", "attn_mask")
# Of the classifier or of another backbone's pyramid: no part of the trunk.
_NOT_TRUNK = re.compile(r"(norm\d?|head|fc)\.|avgpool")


def find_trunk(state: Mapping[str, Tensor]) -> str | None:
    """The prefix of the Swin's keys in ``state`` (``""``, ``"backbone."``, …), None without one."""
    for key in state:
        if key.endswith(_MARK):
            prefix = key[: -len(_MARK)]
            if prefix + _QKV in state:
                return prefix
    return None


def trunk_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The trunk's own tensors of ``state``, without ``prefix`` and without derived buffers."""
    trunk = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or _NOT_TRUNK.match(name):
            continue
        if name.rpartition(".")[2] not in _DERIVED:
            trunk[name] = value
    position = trunk.get("absolute_pos_embed")
    if position is not None and position.dim() == 3:  # the classification form [1, T, C]
        side = round(position.shape[1] ** 0.5)
        trunk["absolute_pos_embed"] = position.transpose(1, 2).unflatten(2, (side, side))
    return trunk


def read_geometry(trunk: Mapping[str, Tensor], source: str) -> SwinPreset:
    """Read a Swin's geometry off its tensors.

    Raises:
        UserError: the tensors are not those of a Swin with these key names.
    """
    try:
        depths = []
        while f"layers.{len(depths)}.blocks.0.norm1.weight" in trunk:
            stage = f"layers.{len(depths)}.blocks."
            depths.append(len({k.split(".")[3] for k in trunk if k.startswith(stage)}))
        tables = [
            trunk[f"layers.{s}.blocks.0.attn.relative_position_bias_table"]
            for s in range(len(depths))
        ]
        position = trunk.get("absolute_pos_embed")
        return SwinPreset(
            embed_dim=trunk[_MARK].shape[0],
            depths=tuple(depths),
            num_heads=tuple(table.shape[1] for table in tables),
            window=(round(tables[0].shape[0] ** 0.5) + 1) // 2,
            pretrain_size=0 if position is None else position.shape[-1] * PATCH,
            absolute_position=position is not None,
            mlp_ratio=trunk["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / trunk[_MARK].shape[0],
        )
    except (KeyError, IndexError) as error:
        raise UserError(
            f"{source}: its Swin lacks {error}; expected the official repository's key names"
        ) from None


def _describe(preset: SwinPreset) -> str:
    name = preset_name(preset)
    return f"{name} ({preset})" if name else str(preset)


def check_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> None:
    """Check that ``state`` (see :func:`trunk_state`) is of the trunk's size and complete.

    Raises:
        UserError: a Swin of another size, or tensors that are missing or superfluous.
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
    own = trunk.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for what, keys in (("lacks", missing), ("has unknown", extra)):
        if keys:
            raise UserError(
                f"{source} {what} {len(keys)} of the trunk's {len(own)} tensors ({keys[0]}, …): "
                "expected a whole Swin with the official repository's key names"
            )


def load_trunk(trunk: SwinTrunk, state: Mapping[str, Tensor], source: str) -> int:
    """Load pretrained Swin weights into ``trunk``; ``source`` names the file in errors.

    Args:
        state: a state dict that contains a Swin under any prefix; the classifier and other parts
            of it are left aside.

    Returns:
        the number of tensors loaded.

    Raises:
        UserError: no Swin in ``state``, one of another size, or an incomplete one. The trunk is
            then as it was.
    """
    prefix = find_trunk(state)
    if prefix is None:
        raise UserError(
            f"{source} lacks the trunk: none of its {len(state)} tensors is a Swin's {_MARK}; "
            "give a pretrained Swin, or a checkpoint that contains its trunk"
        )
    own = trunk_state(state, prefix)
    check_trunk(trunk, own, source)
    trunk.load_state_dict(own)
    return len(own)
