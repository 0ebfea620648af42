"""The result of one try of a fault."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random


@dataclass(frozen=True)
class Outcome:
    """One try.

    Attributes:
        what: the fault, in the words of the table.
        lost: what was lost; empty if nothing was.
        note: what happened, for faults.json.
    """

    what: str
    lost: str = ""
    note: str = ""


@dataclass(frozen=True)
class Campaign:
    """What a fault gets.

    Attributes:
        folder: an empty folder for its files.
        random: generator of all its choices.
        scale: share of the tries.
        frameworks: names of the frameworks whose trainings are tried.
    """

    folder: Path
    random: Random
    scale: float
    frameworks: list[str]

    def tries(self, count: int) -> range:
        """Return the numbers of the tries, of ``count`` at full scale."""
        return range(max(1, round(count * self.scale)))


Fault = Callable[[Campaign], Iterator[Outcome]]
