"""Adapters inside the trunk, where their papers put them: the baseline for the highway.

The highway owns them, so that adapter files hold them and not the trunk. Gradients run back through
the whole trunk, whose own parameters stay frozen.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from .frozen_matrix import FrozenMatrix

QKV_WIDTH = 3  # queries, keys and values together, in multiples of C


def make_inside(
    dim: int,
    hidden: int,
    blocks: Sequence[nn.Module | None],
    points: Mapping[str, str],
    make_adapter: Callable[..., nn.Module],
    frozen: bool,
) -> nn.ModuleList:
    """Make the adapters of a stage.

    Args:
        dim: channels C.
        hidden: width of the MLPs' hidden layer.
        blocks: the trunk's blocks; only their number matters unless ``frozen``.
        points: see the ``inside`` of :class:`e3va.highway.registry.AdapterKind`.
        make_adapter: function ``dim -> module``; at the points ``"qkv"`` and ``"fc1"`` it is called
            with ``outputs`` too.
        frozen: whether it is called with the frozen matrix too.

    Returns:
        A module dict by point for each block.
    """
    outputs = {"qkv": {"outputs": QKV_WIDTH * dim}, "fc1": {"outputs": hidden}}

    def make(block: nn.Module | None, point: str) -> nn.Module:
        matrix = {"frozen": FrozenMatrix(block, point)} if frozen else {}
        return make_adapter(dim, **outputs.get(point, {}), **matrix)

    return nn.ModuleList(
        nn.ModuleDict({point: make(block, point) for point in points}) for block in blocks
    )


def changes_of(blocks: nn.ModuleList, points: Mapping[str, str]) -> list[Callable]:
    """Return for each block the ``change`` of :meth:`e3va.swin.modules.SwinBlock.forward`."""
    return [partial(_change, adapters, points) for adapters in blocks]


def _change(
    adapters: nn.ModuleDict,
    points: Mapping[str, str],
    name: str,
    value: Tensor,
    normed: Tensor | None = None,
    stream: Tensor | None = None,
) -> Tensor:
    if name not in points:
        return value
    source = {"value": value, "normed": normed, "stream": stream}[points[name]]
    # A map, or for "qkv" windows as rows of a map: adapters there compute token by token.
    offset = adapters[name](source.flatten(1, 2), *source.shape[1:3])
    return value + offset.view(value.shape)
