"""Values of annotation files: numbers in every form that tools write, and faults of records."""

import re
from typing import Any

_WHOLE = re.compile(r"\s*[+-]?[0-9]+(\.0*)?\s*")
_LARGEST = 2**63  # pycocotools keeps ids in arrays of 64-bit integers


class Fault(ValueError):
    """A problem that makes a record unusable; ``kind`` is a key of ``problems.KINDS``."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


def as_number(value: Any) -> float | None:
    """Return a number, or a text such as ``"6.5"``, as a float; None for everything else.

    The result may be infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and "_" in value:  # which Python would accept
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    except ValueError:
        return None


def as_whole(value: Any) -> int | None:
    """Return a whole number of 64 bits, which may be written as ``"12"`` or 12.0; or None."""
    if isinstance(value, str):
        value = int(value.split(".")[0]) if _WHOLE.fullmatch(value) and len(value) < 30 else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    elif isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value is not None and -_LARGEST <= value < _LARGEST else None


def as_key(value: Any) -> int | str | None:
    """Return an image id as a whole number, as text if it is another text, or None."""
    whole = as_whole(value)
    if whole is not None or isinstance(value, str):
        return value if whole is None else whole
    return str(value) if type(value) is int else None


def as_name(value: Any) -> str | None:
    """Return a class name without spaces around it, in UTF-8; or None if it is no name."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return str(value).strip().encode("utf-8", "replace").decode() or None


def show(value: Any) -> str:
    """Return a value as a short text for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
