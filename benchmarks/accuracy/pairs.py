"""Published adapters on the highway and inside the trunk.

    python benchmarks/accuracy --photos FOLDER --methods full "mona highway" "mona inside" ...

The adapters of a pair differ in where they stand, and in the rank that trains at most 1.5% of the
backbone: inside, most kinds stand at two points of a block. Conv-Adapter, KronA and the ladder have
no rank; they have their defaults. Side networks stand on the highway only.
"""

from functools import partial
from typing import Any

from e3va.highway.registry import adapter_kinds

from .methods import SMALL, Method

# Title, and the number of which the rank is a multiple (0 for a kind without a rank).
_KINDS = {
    "adaptformer": ("AdaptFormer", 1),
    "bottleneck": ("bottleneck adapters", 1),
    "colin": ("CoLin", 1),
    "conv": ("E³VA's adapters", 1),
    "conv_adapter": ("Conv-Adapter", 0),
    "dual_low_rank": ("the paper's adapters", 1),
    "krona": ("KronA", 0),
    "lora": ("LoRA", 1),
    "lorand": ("LoRand", 1),
    "mea": ("MEA", 4),
    "mona": ("Mona", 1),
    "smoa": ("SMoA", 1),
    "dtl": ("DTL without its way back", 1),
    "ladder": ("a ladder", 0),
}


def _settings(kind: str, placement: str) -> dict[str, Any]:
    return {"adapter": kind, "placement": placement}


def _of_rank(kind: str, placement: str, unit: int, rank: int) -> dict[str, Any]:
    return {**_settings(kind, placement), "rank": unit * rank}


def _method(kind: str, placement: str) -> Method:
    title, unit = _KINDS[kind]
    title = f"{title}, {'on the highway' if placement == 'highway' else 'inside'}"
    if not unit:
        return Method(title, _settings(kind, placement))
    return Method(title, share=SMALL, ranked=partial(_of_rank, kind, placement, unit))


PAIRS = {
    f"{kind} {placement}": _method(kind, placement)
    for kind in _KINDS
    for placement in ("highway", "inside")
    if placement == "highway" or adapter_kinds()[kind].inside
}
