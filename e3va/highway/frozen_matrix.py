"""Frozen matrices of the trunk, for adapters that modulate them."""

from torch import Tensor, nn

# The layer of a block whose matrix is that of an adapter: inside the trunk the one it stands
# beside, on the highway the attention's output projection, which maps C channels to C.
LAYER_AT = {"qkv": "attn.qkv", "fc1": "mlp.fc1"}
_LAYER_OF_A_TAP = "attn.proj"


class FrozenMatrix:
    """The weight of a linear layer in a block of the trunk.

    It holds the block, and not the layer or its weight: both are replaced when the trunk's weights
    are stored in another form. It is no module, so an adapter that holds it does not own the trunk.

    Args:
        block: the :class:`e3va.swin.modules.SwinBlock`.
        point: where an adapter inside the trunk stands; None for an adapter on the highway.
    """

    def __init__(self, block: nn.Module, point: str | None = None):
        self.block, self.path = block, LAYER_AT.get(point, _LAYER_OF_A_TAP)

    @property
    def weight(self) -> Tensor:
        """The weight [outputs, inputs], as the trunk stores it."""
        return self.block.get_submodule(self.path).weight.detach()
