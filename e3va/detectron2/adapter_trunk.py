"""The trunk that an adapter was trained on, as that training had it."""

import logging
from dataclasses import replace
from pathlib import Path

from ..adapter_files.description import AdapterConfig
from ..model_zoo.trunks import find_trunk_of
from ..swin.trunk import SwinTrunk
from ..weights.loading import load_trunk
from ..weights.origin import round_as

logger = logging.getLogger(__name__)


def trunk_of(
    trunk: SwinTrunk,
    told: AdapterConfig,
    source: str,
    *,
    given: str = "",
    near: Path | None = None,
    any_trunk: bool = False,
    rounded: bool = True,
) -> SwinTrunk:
    """``trunk`` itself if it is the one that an adapter was trained on, else another module that
    is; ``trunk`` stays as it was.

    Args:
        trunk: of the model that the adapter is for; may have no weights yet.
        told: the adapter's description.
        source: names the adapter.
        given: the trunk's file or address; ``""`` to look for it.
        near: a folder to look into, see :func:`e3va.model_zoo.trunks.find_trunk_of`.
        any_trunk: whether one with another fingerprint will do.
        rounded: whether the weights are rounded as the training had rounded them: the adapter then
            answers to the bit as the whole model did. A further training rounds them its own way.

    Raises:
        UserError: it is not found, is broken, or has another fingerprint (the text says both).
    """
    wanted = told.trunk
    has_it = trunk.origin is not None and trunk.origin.fingerprint == wanted.fingerprint
    if has_it and not (rounded and trunk.origin.stored == "fp32" != wanted.stored):
        warn_of_rounding(trunk, told, source)
        return trunk
    found = SwinTrunk(trunk.preset)
    if has_it:
        found.load_state_dict(trunk.state_dict())
        found.origin = trunk.origin
    else:
        state, where = find_trunk_of(told, given or None, near)
        for note in load_trunk(found, state, where).notes:
            logger.info("%s: %s", where, note)
    if not any_trunk:
        told.check_origin(found, source)
    if found.origin.fingerprint == wanted.fingerprint:
        if rounded:
            round_as(found, wanted.stored)
        found.origin = wanted if rounded else replace(wanted, stored="fp32")
    else:
        logger.warning(
            "%s was trained on the trunk %s (fingerprint %s), not on %s (fingerprint %s)",
            *(source, wanted.source, wanted.short, found.origin.source, found.origin.short),
        )
    return found


def warn_of_rounding(trunk: SwinTrunk, told: AdapterConfig, source: str) -> None:
    """Say so if the trunk's weights are rounded otherwise than an adapter was trained with."""
    if trunk.origin is not None and trunk.origin.stored != told.trunk.stored:
        logger.warning(
            "%s was trained with its trunk kept as %s; it is kept as %s here: predictions differ "
            "by that rounding",
            *(source, told.trunk.stored, trunk.origin.stored),
        )
