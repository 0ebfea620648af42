"""Key layouts: the names under which libraries publish a Swin, and the official names.

The trunk uses the names of the official repository. The layout of a library is data: the keys by
which it is recognized, a table of renames, and the order in which its patch merging joins the four
tokens of a patch.
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
        keys: keys that a state dict of this layout holds behind a common prefix; the first one is
            the weight of the patch embedding.
        absent: keys that it must not hold behind that prefix.
        renames: patterns and their replacements in the official names, in order, each as for
            :func:`re.sub`.
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

    def official_name(self, name: str) -> str:
        """Translate a name of this layout into the official one, both without the prefix."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def _previous_stage(match: re.Match) -> str:
    """Return timm's stage minus one: timm counts patch merging to the stage after it."""
    return f"layers.{int(match[1]) - 1}.downsample."


def _torchvision_block(match: re.Match) -> str:
    """Return the stage of an odd entry of torchvision's ``features``."""
    return f"layers.{int(match[1]) // 2}.blocks.{match[2]}."


def _torchvision_merging(match: re.Match) -> str:
    """Return the stage of an even entry of torchvision's ``features``, a patch merging."""
    return f"layers.{int(match[1]) // 2 - 1}.downsample.{match[2]}."


_OFFICIAL = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.qkv.weight")
_EARLY_MERGING = r"^layers\.(\d+)\.downsample\."

LAYOUTS = (
    Layout(
        name="timm",
        keys=(*_OFFICIAL, "layers.1.downsample.reduction.weight"),
        absent=("layers.0.downsample.reduction.weight", "layers.0.downsample.norm.weight"),
        renames=((_EARLY_MERGING, _previous_stage),),
    ),
    Layout(
        name="timm (features only)",
        keys=("patch_embed.proj.weight", "layers_0.blocks.0.attn.qkv.weight"),
        renames=((r"^layers_", "layers."), (_EARLY_MERGING, _previous_stage)),
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
            (r"^features\.(\d+)\.(\d+)\.", _torchvision_block),
            (r"^features\.(\d+)\.(norm|reduction)\.", _torchvision_merging),
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
            (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
            (r"\.attention\.q_proj\.", ".attn.query."),
            (r"\.attention\.k_proj\.", ".attn.key."),
            (r"\.attention\.v_proj\.", ".attn.value."),
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
    """Return the prefix and the layout of every Swin in ``state``, without Swin V2 and the like."""
    found: dict[str, Layout] = {}
    for layout in LAYOUTS:
        mark = layout.keys[0]
        for key in state:
            prefix = key.removesuffix(mark)
            if prefix == key or (prefix and not prefix.endswith(".")) or prefix in found:
                continue
            if layout.fits(state, prefix) and not _is_another_swin(state, prefix):
                found[prefix] = layout
    return found


def _is_another_swin(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) and _OTHER_SWINS.search(key) for key in state)


def other_network(state: Mapping[str, Tensor]) -> str | None:
    """Return the network in ``state`` that is no Swin, such as ``"a ResNet"``; None if unknown."""
    for name, pattern in _OTHERS:
        if any(re.search(pattern, key) for key in state):
            return name
    return None


def to_official(state: Mapping[str, Tensor], prefix: str, layout: Layout) -> dict[str, Tensor]:
    """Return the tensors of a Swin's trunk with the official names and order, in their own types.

    Other tensors behind ``prefix`` are ignored: heads, classifiers, norms of outputs, mask tokens,
    buffers that follow from the geometry.
    """
    trunk = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        name = layout.official_name(key.removeprefix(prefix))
        if _TRUNK.match(name) and name.rpartition(".")[2] not in _DERIVED:
            trunk[name] = value
    _join_attention(trunk)
    if layout.unfold:
        _reorder_merging(trunk)
    position = trunk.get("absolute_pos_embed")
    if position is not None and position.dim() == 3:
        trunk["absolute_pos_embed"] = _as_grid(position)
    return trunk


def _join_attention(trunk: dict[str, Tensor]) -> None:
    """Join separate projections of query, key and value, in that order."""
    for name in [name for name in trunk if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in trunk for part in parts):
            joined = torch.cat([trunk.pop(part) for part in parts])
            trunk[name.replace(".query.", ".qkv.")] = joined


def _reorder_merging(trunk: dict[str, Tensor]) -> None:
    """Reorder the 4C channels of patch merging from nn.Unfold's order to Swin's.

    nn.Unfold puts the four tokens of a channel side by side, Swin the C channels of a token.
    """
    for name, value in trunk.items():
        if ".downsample." in name and value.shape[-1] % 4 == 0:
            tokens = value.unflatten(-1, (-1, 4)).transpose(-1, -2)
            trunk[name] = tokens[..., _UNFOLD_ORDER, :].flatten(-2)


def _as_grid(position: Tensor) -> Tensor:
    """Return [1, T, C], the form of classification models, as [1, C, √T, √T] if T is a square."""
    side = round(position.shape[1] ** 0.5)
    if side**2 != position.shape[1]:
        return position
    return position.transpose(1, 2).unflatten(2, (side, side))
