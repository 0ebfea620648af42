"""The sizes of Swin Transformers as data (Liu et al., arXiv 2103.14030, section 3.3)."""

from dataclasses import dataclass, replace

from ..utils.errors import check_choice


@dataclass(frozen=True)
class SwinPreset:
    """The geometry of a Swin trunk.

    Attributes:
        embed_dim: channels C_0 of the first stage; stage s has ``embed_dim * 2**s``.
        depths: number of blocks L_s of each stage.
        num_heads: number of attention heads of each stage.
        window: side of a window in tokens.
        pretrain_size: side of the pretraining's images in pixels, which sets the grid of the
            absolute position embedding.
        absolute_position: whether the trunk has an absolute position embedding.
        mlp_ratio: width of the MLP's hidden layer divided by the stage's channels.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window: int = 7
    pretrain_size: int = 224
    absolute_position: bool = False
    mlp_ratio: float = 4.0

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels C_s of each stage."""
        return tuple(self.embed_dim * 2**s for s in range(len(self.depths)))

    def check_bounds(self) -> None:
        """Raise a ValueError if sizes from an untrusted file could exhaust the memory."""
        sizes = (self.embed_dim, self.window, *self.depths, *self.num_heads)
        bounded = all(isinstance(n, int) and 0 < n <= 1024 for n in sizes)
        bounded &= 0 < self.mlp_ratio <= 16 and 0 <= self.pretrain_size <= 4096
        if not bounded or not len(self.depths) == len(self.num_heads) == 4:
            raise ValueError("sizes out of range")

    def __str__(self) -> str:
        depths, heads = ("-".join(map(str, n)) for n in (self.depths, self.num_heads))
        position = ", absolute position embedding" if self.absolute_position else ""
        ratio = f", mlp_ratio {self.mlp_ratio:g}" if self.mlp_ratio != 4 else ""
        sizes = f"embed_dim {self.embed_dim}, depths {depths}, heads {heads}, window {self.window}"
        return sizes + position + ratio


_WINDOW_7 = {
    "swin_t": SwinPreset(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": SwinPreset(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": SwinPreset(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_l": SwinPreset(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
PRESETS: dict[str, SwinPreset] = {
    **_WINDOW_7,
    **{f"{n}_384": replace(p, window=12, pretrain_size=384) for n, p in _WINDOW_7.items()},
    # The trunk that comes with the library: half the width of Swin-T. benchmarks/pretrain.py
    # trained it on photographs.
    "swin_mini": SwinPreset(48, (2, 2, 6, 2), (2, 4, 8, 16)),
    # A trunk that a test builds, steps and saves in a second.
    "swin_nano": SwinPreset(16, (2, 2, 2, 2), (1, 2, 4, 8), window=4, pretrain_size=64),
}


def get_preset(preset: "str | SwinPreset") -> SwinPreset:
    """Return a preset by name, or a given :class:`SwinPreset` itself.

    Raises:
        UserError: no preset has that name.
    """
    if isinstance(preset, SwinPreset):
        return preset
    check_choice("no Swin preset", preset, PRESETS)
    return PRESETS[preset]


def same_geometry(one: SwinPreset, other: SwinPreset) -> bool:
    """Return whether the weights of one preset fit the other."""
    # The pretraining size only matters to an absolute position embedding.
    if not one.absolute_position:
        one, other = replace(one, pretrain_size=0), replace(other, pretrain_size=0)
    return one == other


def preset_name(preset: SwinPreset) -> str | None:
    """Return the name of the preset with this geometry, whatever its pretraining size."""
    for name, known in PRESETS.items():
        if replace(known, pretrain_size=preset.pretrain_size) == preset:
            return name
    return None
