"""Tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Any


def columns(
    head: Sequence[str], rows: Iterable[Sequence[Any]], align: str, widest: int = 60
) -> list[str]:
    """Lines of a table, indented by two.

    Args:
        head: of the columns.
        align: ``"<"`` or ``">"`` for each column.
        widest: characters of a cell; longer ones are cut.
    """
    lines = [[_short(str(cell), widest) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  "
        + "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _short(text: str, widest: int) -> str:
    return text if len(text) <= widest else f"{text[: widest - 1]}…"
