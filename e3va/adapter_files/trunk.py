"""The trunk of an adapter: built, loaded, checked and rounded as in its training."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..swin.trunk import SwinTrunk
from ..weights.loading import load_trunk
from ..weights.origin import round_as
from .description import AdapterConfig


def build_trunk(
    config: AdapterConfig,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    adapter: str = "the adapter",
    any_trunk: bool = False,
    stored: str | None = None,
) -> SwinTrunk:
    """Build the trunk of an adapter from pretrained weights.

    Args:
        config: description of the adapter.
        weights: state dict with a Swin in any layout of :data:`e3va.weights.layouts.LAYOUTS`.
        source: name of the weights file, for messages and the trunk's origin.
        adapter: name of the adapter, for messages.
        any_trunk: whether to accept weights with another fingerprint.
        stored: rounding of the weights, see :attr:`e3va.weights.origin.TrunkOrigin.stored`; None
            for the rounding of the adapter's training, which reproduces predictions to the bit.

    Raises:
        UserError: a Swin of another size, or weights with another fingerprint.
    """
    trunk = SwinTrunk(config.backbone.preset)
    load_trunk(trunk, weights, source)
    if not any_trunk:
        config.check_origin(trunk, adapter)
    stored = config.trunk.stored if stored is None else stored
    round_as(trunk, stored)
    trunk.origin = replace(trunk.origin, stored=stored)
    return trunk
