"""Forms of the highway beside the default.

    python benchmarks/accuracy --candidates [--photos FOLDER] [--streets FOLDER]

compares them on the tasks with label maps by their validation scores. The ranks are the largest
that train at most 1.5% of the backbone with the trunk ``swin_mini``; the percentages in the titles
are these shares. benchmarks/results/accuracy has the scores of forms that were no better than the
default and are not in the code any more.
"""

from .methods import METHODS, Method
from .pairs import PAIRS

_WIDE_SHARED = {"recipe": "e3va_wide", "shared": True}
CANDIDATES = {
    name: Method(title, highway)
    for name, title, highway in (
        ("chain", "chain 5×5, rank 21: 1.47%", {"rank": 21}),
        ("chain 1x1", "chain 1×1, rank 22: 1.45%", {"rank": 22, "kernel": 1}),
        ("chain 3x3", "chain 3×3, rank 22: 1.48%", {"rank": 22, "kernel": 3}),
        ("chain 7x7", "chain 7×7, rank 20: 1.49%", {"rank": 20, "kernel": 7}),
        ("two taps", "chain, 2 taps a block, rank 10: 1.44%", {"rank": 10, "taps": "residual"}),
        ("shared", "chain, one adapter for a stage, rank 64: 1.44%", _WIDE_SHARED),
    )
}
ALL = METHODS | CANDIDATES | PAIRS
