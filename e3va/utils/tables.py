"""Tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any


def columns(
    head: Sequence[str], rows: Iterable[Sequence[Any]], align: str, widest: int = 60
) -> list[str]:
    """Return the lines of a table, indented by two spaces.

    Args:
        head: names of the columns.
        rows: cells of each row.
        align: ``"<"`` or ``">"`` for each column.
        widest: largest number of characters in a cell; longer texts are cut.
    """
    lines = [[_shorten(str(cell), widest) for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return [f"  {layout.format(*line)}".rstrip() for line in lines]


def _shorten(text: str, widest: int) -> str:
    return text if len(text) <= widest else f"{text[: widest - 1]}…"
