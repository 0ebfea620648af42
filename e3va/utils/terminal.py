"""Output to terminals that cannot print every character."""

import io
import sys
from collections.abc import Iterable
from typing import Any


def escape_unprintable(streams: Iterable[Any] | None = None) -> None:
    """Let text streams write characters that they cannot encode as escapes of ASCII characters.

    File names need not be UTF-8, and terminals need not be either. The default streams are stdout
    and stderr.
    """
    for stream in (sys.stdout, sys.stderr) if streams is None else streams:
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")
