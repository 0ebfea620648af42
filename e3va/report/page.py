"""The page of a report: one HTML file with all its pictures, without scripts."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ..utils.atomic import atomic_open
from ..utils.errors import UserError
from . import plots
from .findings import LEAST_SCORE, Findings

ASSETS = Path(__file__).parent.parent / "assets"
WORST, BEST = 12, 6  # numbers of images that are shown
QUALITY = 85  # of their JPEG files


@dataclass
class Training:
    """What a report says of a training, whatever framework did it.

    Attributes:
        name: the title: the name of the folder.
        facts: what trained, on what, where and how, by name; the values are text.
        scores: scores in percent by name; None for no score.
        per_class: AP or IoU of each class in percent.
        score: name of what ``per_class`` has.
        losses: (step, training loss).
        progress: name of a score → (step, its value on the validation data).
        parts: rows (part, all parameters, trained ones, share), as text.
        command: the command that repeats the training.
        findings: what the model finds in the validation data; None without validation data.
        images: names of the validation images, in the order of ``findings.quality``.
        without: why there are no findings, if that is not for lack of validation data.
        draw: function from an image's place to two pictures, the truth and what was found.
    """

    name: str
    facts: dict[str, str]
    scores: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    score: str = "AP"
    losses: list[tuple[float, float]] = field(default_factory=list)
    progress: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    parts: list[tuple[str, str, str, str]] = field(default_factory=list)
    command: str = ""
    findings: Findings | None = None
    images: Sequence[str] = ()
    without: str = ""
    draw: Callable[[int], tuple[Image.Image, Image.Image]] | None = None


def part_rows(parts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, str, str]]:
    """Return the rows of ``Training.parts`` from the parameters of each part."""
    rows = [(part, row["all"], row["trained"]) for part, row in parts.items()]
    rows.append(("all", *(sum(row[place] for row in rows) for place in (1, 2))))
    return [(part, f"{a:,}", f"{t:,}", f"{t / a if a else 0:.2%}") for part, a, t in rows]


def moved(error: UserError) -> str:
    """Return the text of ``Training.without`` for an error while the data were read."""
    return f"The data of the training cannot be read any more: {error.line}"


@dataclass
class _Pair:
    """An image of the validation data in a report."""

    name: str
    quality: str
    truth: str  # data addresses
    found: str


def write_report(training: Training, path: Path) -> None:
    """Write the page of a training, atomically.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    findings, found = training.findings, {}
    if findings is not None:
        order = findings.order()
        worst = order[:WORST]
        best = [place for place in reversed(order) if place not in worst][:BEST]
        found = {
            "measure": findings.measure,
            "least_score": LEAST_SCORE,
            "confusion": plots.confusion(findings),
            "worst": [_pair(training, place) for place in worst],
            "best": [_pair(training, place) for place in best],
        }
        if findings.precision:
            found["precision"] = plots.precision_recall(findings)
        if findings.by_size:
            found["sizes"] = plots.bars(findings.by_size, "AP by the size of the objects")
    if training.per_class:
        found["classes"] = plots.bars(training.per_class, f"{training.score} of each class")
    _render("report.html", path, training=training, curves=_curves({"": training}), **found)


def write_comparison(trainings: Sequence[Training], path: Path) -> None:
    """Write a page of several trainings side by side, see :func:`write_report`."""
    named = {training.name: training for training in trainings}
    names = list(dict.fromkeys(name for training in trainings for name in training.scores))
    facts = list(dict.fromkeys(name for training in trainings for name in training.facts))
    classes: dict[str, dict[str, float]] = {}
    for run, own in named.items():
        for name, value in own.per_class.items():
            classes.setdefault(f"{own.score}: {name}", {})[run] = value
    _render(
        "compare.html",
        path,
        trainings=trainings,
        scores=names,
        facts=facts,
        classes=classes,
        curves=_curves(named),
        bars=[
            plots.bars(
                {run: own.scores[name] for run, own in named.items() if _has(own, name)}, name
            )
            for name in names
        ],
    )


def _has(training: Training, score: str) -> bool:
    return training.scores.get(score) is not None


def _curves(trainings: Mapping[str, Training]) -> list[str]:
    drawn = []
    losses = {name: own.losses for name, own in trainings.items() if own.losses}
    if losses:
        drawn.append(plots.curve(losses, "training loss"))
    for score in dict.fromkeys(name for own in trainings.values() for name in own.progress):
        runs = {
            name: own.progress[score] for name, own in trainings.items() if score in own.progress
        }
        if any(len(points) > 1 for points in runs.values()):  # else the table says it all
            drawn.append(plots.curve(runs, f"{score}, validation"))
    return drawn


def _pair(training: Training, place: int) -> _Pair:
    truth, found = map(_jpeg, training.draw(place))
    quality = f"{training.findings.quality[place]:.2f}"
    return _Pair(training.images[place], quality, truth, found)


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return plots.address(buffer.getvalue(), "jpeg")


def _cell(value: Any) -> str:
    """Format a score; a dash stands for none."""
    return "–" if value is None or value != value else f"{value:.1f}"


def _render(template: str, path: Path, **content: Any) -> None:
    loader = jinja2.FileSystemLoader(ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters["cell"] = _cell
    text = environment.get_template(template).render(**content)
    with atomic_open(path, "w") as file:
        file.write(text)
