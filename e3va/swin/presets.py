"""The Swin sizes, as data (Liu et al., arXiv 2103.14030, section 3.3)."""

from dataclasses import dataclass, replace

from ..utils.errors import UserError


@dataclass(frozen=True)
class SwinPreset:
    """The geometry of a Swin trunk.

    Attributes:
        embed_dim: channels C_0 of the first stage; stage s has ``embed_dim * 2**s``.
        depths: blocks L_s of each stage.
        num_heads: attention heads of each stage.
        window: window side in tokens.
        pretrain_size: image side in pixels of the pretraining; it sets the grid of the absolute
            position embedding.
        absolute_position: whether the trunk has an absolute position embedding.
        mlp_ratio: width of the MLP over the stage's channels.
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
        """Check a geometry that anybody may have written, so that it cannot exhaust the memory.

        Raises:
            ValueError: a size of another type or out of range.
        """
        sizes = (self.embed_dim, self.window, *self.depths, *self.num_heads)
        if not all(isinstance(n, int) and 0 < n <= 1024 for n in sizes):
            raise ValueError("sizes out of range")
        if len(self.depths) != 4 or len(self.num_heads) != 4 or not 0 < self.mlp_ratio <= 16:
            raise ValueError("sizes out of range")
        if not 0 <= self.pretrain_size <= 4096:
            raise ValueError("sizes out of range")

    def __str__(self) -> str:
        depths = "-".join(map(str, self.depths))
        heads = "-".join(map(str, self.num_heads))
        position = ", absolute position embedding" if self.absolute_position else ""
        return (
            f"embed_dim {self.embed_dim}, depths {depths}, heads {heads}, "
            f"window {self.window}{position}"
        )


_WINDOW_7 = {
    "swin_t": SwinPreset(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_s": SwinPreset(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_b": SwinPreset(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "swin_l": SwinPreset(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

PRESETS: dict[str, SwinPreset] = {
    **_WINDOW_7,
    **{
        f"{name}_384": replace(preset, window=12, pretrain_size=384)
        for name, preset in _WINDOW_7.items()
    },
    # The demonstration's: trained by benchmarks/pretrain.py on drawn pictures and shipped.
    "swin_micro": SwinPreset(24, (2, 2, 2, 2), (1, 2, 4, 8), pretrain_size=128),
    # Small enough for a test to build, step and save in a second.
    "swin_nano": SwinPreset(16, (2, 2, 2, 2), (1, 2, 4, 8), window=4, pretrain_size=64),
}


def get_preset(preset: "str | SwinPreset") -> SwinPreset:
    """Look a preset up by name; a :class:`SwinPreset` is returned as it is.

    Raises:
        UserError: no preset has that name.
    """
    if isinstance(preset, SwinPreset):
        return preset
    if preset not in PRESETS:
        raise UserError(f"no Swin preset {preset!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def same_geometry(one: SwinPreset, other: SwinPreset) -> bool:
    """Whether weights of one fit the other; the pretraining size matters to a position embedding
    alone."""
    if not one.absolute_position:
        one, other = replace(one, pretrain_size=0), replace(other, pretrain_size=0)
    return one == other


def preset_name(preset: SwinPreset) -> str | None:
    """The name under which ``preset`` is listed (its geometry, not its pretraining size)."""
    for name, known in PRESETS.items():
        if replace(known, pretrain_size=0) == replace(preset, pretrain_size=0):
            return name
    return None
