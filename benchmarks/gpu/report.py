"""The report: gpu.md and gpu.json, written again after each part, and the pictures."""

import json
import sys
from pathlib import Path
from typing import Any

from cost import pictures as cost_pictures
from cost import report as cost_report
from cost.report import markdown, where

from e3va.utils.atomic import atomic_open
from e3va.utils.errors import UserError

from .pictures import plot_capacity, plot_forward

Row = dict[str, Any]
SECONDS_AN_HOUR = 3600
CARDS = (1, 8)


def write(folder: Path, about: Row, ends: dict[str, str], rows: list[Row]) -> bool:
    """Write all files; return whether a check failed or a part did not end.

    Args:
        folder: output folder.
        about: the machine, see :func:`cost.report.machine`.
        ends: how each part ended.
        rows: the rows of all parts.
    """
    tables: dict[str, list[Row]] = {}
    for row in rows:
        tables.setdefault(row["table"], []).append(row)
    with atomic_open(folder / "gpu.json", "w") as file:
        json.dump({"machine": about, "parts": ends, "tables": tables}, file, indent=1)
    failed = [row for row in tables.get("checks", ()) if not row["passed"]]
    sections = [_head(about, ends), _checks(tables.get("checks", []), failed)]
    sections += [
        f"## {TITLES[name]}\n\n{TEXTS[name](tables[name])}" for name in TEXTS if name in tables
    ]
    notes = [f"- {row['text']}" for row in tables.get("notes", ())]
    sections += ["## Left out\n\n" + "\n".join(notes)] if notes else []
    with atomic_open(folder / "gpu.md", "w") as file:
        file.write("\n\n".join(sections) + "\n")
    try:
        _plot(folder, tables)
    except UserError as error:  # matplotlib is not installed
        print(f"no pictures: {error.line}", file=sys.stderr)
    return bool(failed) or any(not end.startswith("done") for end in ends.values())


def _plot(folder: Path, tables: dict[str, list[Row]]) -> None:
    for row in tables.get("steps", ()):
        path = folder / f"steps_{row['preset']}_batch_{row['batch']}.png"
        cost_pictures.plot_cost([row["cost"]], path)
    if "forward" in tables:
        plot_forward(forward_seconds(tables["forward"]), folder / "forward.png")
    if "capacity" in tables:
        plot_capacity(tables["capacity"], folder / "capacity.png")


def _head(about: Row, ends: dict[str, str]) -> str:
    warning = "**Run with --short: the figures mean nothing.**\n\n" if about["short"] else ""
    memory = f", {about['memory_gib']:.0f} GiB" if "memory_gib" in about else ""
    parts = markdown([["part", "ended"], *([name, end] for name, end in ends.items())])
    return f"# {about['device']}{memory}\n\n{warning}{where({'machine': about})}\n\n{parts}"


def _checks(rows: list[Row], failed: list[Row]) -> str:
    lines = [f"## Checks: {len(rows) - len(failed)} passed, {len(failed)} failed"]
    if failed:
        cells = [
            [r["what"], f"{r['found']:.3g}", f"{r['limit']:.3g}"]
            if "found" in r
            else [r["what"], r["error"], ""]
            for r in failed
        ]
        lines.append(markdown([["failed", "found", "limit"], *cells]))
    worst: dict[str, Row] = {}
    for row in rows:
        kind = row["what"].partition(":")[0].partition(",")[0]
        if "found" in row and row["found"] >= worst.get(kind, row)["found"]:
            worst[kind] = row
    if worst:
        head = ["checks of", "largest error", "limit", "in"]
        cells = [
            [kind, f"{row['found']:.2g}", f"{row['limit']:.2g}", row["what"]]
            for kind, row in worst.items()
        ]
        lines.append(markdown([head, *cells]))
    return "\n\n".join(lines)


def _waits(rows: list[Row]) -> str:
    return markdown([["pass", "waits"], *([row["what"], str(row["waits"])] for row in rows)])


def _steps(rows: list[Row]) -> str:
    parts = []
    for row in rows:
        table = row["cost"]
        parts.append(f"### {cost_report.title(table)}\n\n{cost_report.text(table)}")
    return "\n\n".join([*parts, cost_report.NOTES])


def _capacity(rows: list[Row]) -> str:
    caps = sorted({row["cap"] for row in rows})
    lines = [["method", *(f"{cap:g} GiB: image, batch" for cap in caps)]]
    found = {(row["method"], row["cap"]): row for row in rows}
    for method in dict.fromkeys(row["method"] for row in rows):
        lines.append([method, *(_fitting(found.get((method, cap))) for cap in caps)])
    note = (
        f"{rows[0]['preset']}. The largest image that trains, and the largest batch of images of "
        "800×1333. The limit holds for PyTorch's allocator; a card needs about half a GiB more."
    )
    return f"{markdown(lines)}\n\n{note}"


def _fitting(row: Row | None) -> str:
    if row is None:
        return "not measured"
    image = "×".join(map(str, row["image"])) if row["image"] else "none"
    return f"{image}, {row['batch'] or 'none'}"


def forward_seconds(rows: list[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the seconds by form, for each preset and precision."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["preset"], row["precision"]), {}).update(row["seconds"])
    return found


def _forward(rows: list[Row]) -> str:
    found = forward_seconds(rows)
    forms = list(dict.fromkeys(form for seconds in found.values() for form in seconds))
    lines = [["Swin", "precision", *(f"{form}, s" for form in forms), "theirs / ours"]]
    for (preset, precision), seconds in found.items():
        cells = [f"{seconds[form]:.4f}" if form in seconds else "–" for form in forms]
        theirs = [seconds[name] for name in ("timm", "detectron2") if name in seconds]
        ratio = f"{min(theirs) / seconds['fast']:.2f}" if theirs and "fast" in seconds else "–"
        lines.append([preset, precision, *cells, ratio])
    return f"{markdown(lines)}\n\nThe last column is the faster of timm and Detectron2 over `fast`."


def _chunks(rows: list[Row]) -> str:
    lines = [["chunk, MiB", "seconds"]]
    return markdown(lines + [[str(row["mib"]), f"{row['seconds']:.4f}"] for row in rows])


def _attention(rows: list[Row]) -> str:
    lines = [["tokens in a window", "operator", "seconds"]]
    cells = [[str(r["tokens"]), r["operator"], f"{r['seconds']:.6f}"] for r in rows]
    return markdown(lines + cells)


def _recipes(rows: list[Row]) -> str:
    lines = [["config", "method", "seconds a step", *(f"hours, {n} card(s)" for n in CARDS)]]
    for row in rows:
        for method, seconds in row["seconds"].items():
            hours = row["iterations"] * row["images"] / row["batch"] * seconds / SECONDS_AN_HOUR
            cells = [f"{hours / cards:,.1f}" for cards in CARDS]
            lines.append([row["config"], method, f"{seconds:.3f}", *cells])
    note = (
        f"A step has {rows[0]['batch']} images. Hours are those of the steps only: iterations × "
        "images ÷ images a step × seconds a step ÷ cards, without loading, evaluation and the "
        "exchange of gradients."
    )
    return f"{markdown(lines)}\n\n{note}"


def _predict(rows: list[Row]) -> str:
    lines = [["Swin", "precision", "images a second"]]
    cells = [[r["preset"], r["precision"], f"{r['images_a_second']:.2f}"] for r in rows]
    return markdown(lines + cells)


def _profile(rows: list[Row]) -> str:
    lines = [["kind", "name", "calls", "milliseconds", "share", "of the product's limit"]]
    for row in rows:
        limit = f"{row['of_limit']:.0%}" if row["of_limit"] else "–"
        milliseconds = f"{1000 * row['seconds']:.2f}"
        cells = [row["kind"], f"`{row['name']}`", str(row["calls"]), milliseconds]
        lines.append([*cells, f"{row['share']:.1%}", limit])
    return markdown(lines)


def _limits(rows: list[Row]) -> str:
    lines = [["precision", "TFLOP/s of a large product", "GB/s of a copy"]]
    cells = [[r["precision"], f"{r['flops'] / 1e12:.1f}", f"{r['bytes'] / 1e9:.0f}"] for r in rows]
    return markdown(lines + cells)


TEXTS = {
    "waits": _waits,
    "steps": _steps,
    "capacity": _capacity,
    "forward": _forward,
    "chunks": _chunks,
    "attention": _attention,
    "recipes": _recipes,
    "predict": _predict,
    "profile": _profile,
    "limits": _limits,
}
TITLES = {
    "waits": "Operators for which the host waits",
    "steps": "A training step",
    "capacity": "What fits under a memory limit",
    "forward": "The frozen trunk's forward pass",
    "chunks": "Chunk sizes of the fast form",
    "attention": "Attention in windows",
    "recipes": "What published recipes would take",
    "predict": "Predictions",
    "profile": "A training step by operator and by kernel",
    "limits": "The device's limits",
}
