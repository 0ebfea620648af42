"""Key layouts as data: the names under which libraries publish a Swin's tensors.

The trunk uses the names of the official repository.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Rename = tuple[str, str | Callable[[re.Match], str]]


@dataclass(frozen=True)
class Layout:
    """One library's names for the tensors of a Swin.

    Attributes:
        name: name of the library, for people.
        keys: keys behind a common prefix by which the layout is recognized; the first one is the
            weight of the patch embedding.
        absent: keys that must be absent behind that prefix.
        renames: patterns and their replacements, in order, as for :func:`re.sub`; they give the
            official names.
        unfold: whether patch merging joins its four tokens in the order of ``torch.nn.Unfold``.
    """

    name: str
    keys: tuple[str, ...]
    absent: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()
    unfold: bool = False

    def fits(self, state: Mapping[str, Tensor], prefix: str) -> bool:
        """Return whether ``state`` has this layout behind ``prefix``."""
        return all(prefix + key in state for key in self.keys) and not any(
            prefix + key in state for key in self.absent
        )


_OFFICIAL = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight")
# timm counts patch merging to the stage after it.
_TIMM_MERGING = (
    r"^layers\.(\d+)\.downsample\.",
    lambda match: f"layers.{int(match[1]) - 1}.downsample.",
)

LAYOUTS = (
    Layout(
        name="timm",
        keys=(*_OFFICIAL, "layers.1.downsample.reduction.weight"),
        absent=("layers.0.downsample.reduction.weight", "layers.0.downsample.norm.weight"),
        renames=(_TIMM_MERGING,),
    ),
    Layout(
        name="timm (features only)",
        keys=("patch_embed.proj.weight", "layers_0.blocks.0.attn.qkv.weight"),
        renames=((r"^layers_", "layers."), _TIMM_MERGING),
    ),
    # Detectron2 and Swin's repositories for detection and segmentation use it too.
    Layout(name="official", keys=_OFFICIAL),
    Layout(
        name="mmdetection",
        keys=("patch_embed.projection.weight", "stages.0.blocks.0.attn.w_msa.qkv.weight"),
        renames=(
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^stages\.", "layers."),
            (r"\.attn\.w_msa\.", ".attn."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        ),
        unfold=True,
    ),
    Layout(
        name="torchvision",
        keys=("features.0.0.weight", "features.1.0.attn.qkv.weight"),
        renames=(
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            # Stage s is entry 2s + 1, and its patch merging entry 2s + 2.
            (r"^features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
            (
                r"^features\.(\d+)\.(norm|reduction)\.",
                lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.{m[2]}.",
            ),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
    ),
    # Files have attention.self.query etc.; models in memory have attention.q_proj etc. since
    # version 5.
    Layout(
        name="Hugging Face transformers",
        keys=(
            "embeddings.patch_embeddings.projection.weight",
            "encoder.layers.0.blocks.0.layernorm_before.weight",
        ),
        renames=(
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.norm\.", "patch_embed.norm."),
            (r"^embeddings\.position_embeddings$", "absolute_pos_embed"),
            (r"^encoder\.layers\.", "layers."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.self\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
            (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
            (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.attention\.(self|relative_position_bias)\.relative_", ".attn.relative_"),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    ),
)

# Other kinds of Swin, and other backbones, by keys that only they have.
_OTHERS = (
    ("a Swin mixture of experts", r"\._moe_layer\."),
    ("a Swin Transformer V2", r"\.(cpb_mlp|continuous_position_bias_mlp|meta_mlp)\."),
    ("a Swin-MLP", r"\.spatial_mlp\."),
    ("a ConvNeXt", r"(downsample_layers\.0\.0\.weight|\.(dwconv|conv_dw)\.weight)$"),
    ("a ResNet", r"(layer1|res2)\.0\.conv1\.weight$|stages\.0\.layers\.0\.layer\.0\.convolution"),
    ("a vision transformer (ViT)", r"(cls_token|class_token)$"),
)
_OTHER_SWINS = re.compile("|".join(pattern for _, pattern in _OTHERS[:3]))

_TRUNK = re.compile(r"(patch_embed|layers)\.|absolute_pos_embed$")
# Buffers in published files that follow from the geometry.
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
# nn.Unfold orders the four tokens of a patch row by row, Swin column by column.
_UNFOLD_ORDER = [0, 2, 1, 3]


def find_swins(state: Mapping[str, Tensor]) -> dict[str, Layout]:
    """Return the prefix and the layout of every Swin in ``state`` (not of Swin V2 and the like)."""
    found: dict[str, Layout] = {}
    for layout in LAYOUTS:
        mark = layout.keys[0]
        for key in state:
            prefix = key.removesuffix(mark)
            if prefix == key or (prefix and not prefix.endswith(".")) or prefix in found:
                continue
            own = (name for name in state if name.startswith(prefix))
            if layout.fits(state, prefix) and not any(map(_OTHER_SWINS.search, own)):
                found[prefix] = layout
    return found


def other_network(state: Mapping[str, Tensor]) -> str | None:
    """Return the network in ``state`` that is no Swin, such as ``"a ResNet"``; None if unknown."""
    found = (name for name, pattern in _OTHERS if any(re.search(pattern, key) for key in state))
    return next(found, None)


def to_official(state: Mapping[str, Tensor], prefix: str, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a Swin's trunk with the official names and order, in their own types.

    Other tensors behind ``prefix``, such as heads and output norms, are left out.
    """
    trunk = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        for pattern, replacement in layout.renames:
            name = re.sub(pattern, replacement, name)
        if _TRUNK.match(name) and name.rpartition(".")[2] not in _DERIVED:
            trunk[name] = value
    _join_attention(trunk)
    if layout.unfold:
        _reorder_merging(trunk)
    position = trunk.get("absolute_pos_embed")
    if position is not None and position.dim() == 3:  # [1, T, C], as in classification models
        side = round(position.shape[1] ** 0.5)
        if side**2 == position.shape[1]:
            trunk["absolute_pos_embed"] = position.transpose(1, 2).unflatten(2, (side, side))
    return trunk


def _join_attention(trunk: dict[str, Tensor]) -> None:
    """Join separate projections of query, key and value, in that order."""
    for name in [name for name in trunk if ".attn.q." in name]:
        parts = [name.replace(".q.", f".{part}.") for part in "qkv"]
        if all(part in trunk for part in parts):
            joined = torch.cat([trunk.pop(part) for part in parts])
            trunk[name.replace(".q.", ".qkv.")] = joined


def _reorder_merging(trunk: dict[str, Tensor]) -> None:
    """Reorder the channels of patch merging from nn.Unfold's [C, 4] to Swin's [4, C]."""
    for name, value in trunk.items():
        if ".downsample." in name and value.shape[-1] % 4 == 0:
            tokens = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
            trunk[name] = tokens[..., _UNFOLD_ORDER, :].flatten(-2)
