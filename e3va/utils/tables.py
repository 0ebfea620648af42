"""Tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any


def columns(
    head: Sequence[str], rows: Iterable[Sequence[Any]], align: str, widest: int = 60
) -> list[str]:
    """Return the lines of a table, indented by two spaces.

    ``align`` has ``"<"`` or ``">"`` for each column; cells are cut to ``widest`` characters.
    """

    def shorten(text: str) -> str:
        return text if len(text) <= widest else f"{text[: widest - 1]}…"

    lines = [[shorten(str(cell)) for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    layout = "  ".join(f"{{:{side}{width}}}" for side, width in zip(align, widths, strict=True))
    return [f"  {layout.format(*line)}".rstrip() for line in lines]
