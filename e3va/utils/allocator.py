"""The C library's memory, kept from step to step."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Make glibc keep memory that is freed, instead of returning it to the system.

    A training step on a CPU frees large tensors and allocates others of the same sizes. By default
    glibc returns each of them to the system, which then has to map and clear its pages anew. This
    function does nothing where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    set_option(_MMAP_MAX, 0)
    set_option(_TRIM_THRESHOLD, -1)  # never
