"""The report on the runs: JSON, Markdown tables, plots, pictures."""

import json
import platform
import statistics
import subprocess
from argparse import Namespace
from pathlib import Path

import torch
from PIL import Image

from e3va.torchvision.curves import read_metrics
from e3va.torchvision.data import read_example
from e3va.torchvision.models import load_state
from e3va.torchvision.predict import draw_instances, draw_labels
from e3va.torchvision.trainer import MODEL, SUMMARY
from e3va.utils.atomic import atomic_open, rename_atomically
from e3va.utils.optional import require
from e3va.weights.checkpoint import load_file, model_state

from .candidates import ALL
from .methods import DEFAULT
from .runs import TEST, Run, build, validation
from .tasks import TASKS, Sources

PAIR = ("full", DEFAULT)
PAIRS, PANEL, DRAWN_FROM = 10, 256, 0.5  # number of pictures, their height in pixels, least score


def collect(schedule, grid, final, tested: bool) -> dict:
    """Return task → method → measurements, with test scores or else validation scores."""
    results: dict = {}
    for (task, method), chosen in final.items():
        metric = TASKS[task].metric
        folders = [schedule.folder(run) for run in chosen]
        summaries = [json.loads((f / SUMMARY).read_text()) for f in folders]
        curves = [validation(r, f) for r, f in zip(chosen, folders, strict=True)]
        scores = [_test_score(f, metric) for f in folders] if tested else [c[-1][1] for c in curves]
        parts = summaries[0]["parameters"]
        backbone = [parts["trunk"], parts["highway"]]
        results.setdefault(task, {})[method] = {
            "rate": chosen[0].rate,
            "steps": chosen[0].steps,
            "scores": scores,
            "trained_in_backbone": sum(part["trained"] for part in backbone),
            "share_of_backbone": sum(p["trained"] for p in backbone)
            / sum(p["all"] for p in backbone),
            "kept_for_backward_bytes": summaries[0]["kept_for_backward_bytes"],
            "seconds_a_step": statistics.median(s["seconds_a_step"] for s in summaries),
            "search": {
                f"{run.rate:g}": validation(run, schedule.folder(run))[-1][1]
                for run in grid[task, method]
            },
            "curves": curves,
            "losses": [_losses(f) for f in folders],
        }
    return results


def _test_score(folder: Path, metric: str) -> float:
    return json.loads((folder / TEST).read_text())["scores"][metric]


def _losses(folder: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(folder) if "loss" in m]


def overall(results: dict) -> dict[str, list[float]]:
    """Return method → the mean score of all tasks for each seed."""
    methods = next(iter(results.values()))
    by_seed = {
        m: zip(*(row[m]["scores"] for row in results.values()), strict=True) for m in methods
    }
    return {m: [statistics.fmean(scores) for scores in seeds] for m, seeds in by_seed.items()}


def spread(values: list[float]) -> str:
    """Format the mean and the standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def summary_table(results: dict) -> str:
    """Return a Markdown table: a row for each method, a column for each task."""
    means, tasks = overall(results), list(results)
    full = statistics.fmean(means["full"]) if "full" in means else None
    head = ["", *tasks, "mean", "trained", *(["of full", "kept", "time"] if full else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in sorted(means, key=lambda m: -statistics.fmean(means[m])):
        rows = [results[task][method] for task in tasks]
        cells = [ALL[method].title, *(spread(row["scores"]) for row in rows)]
        cells += [spread(means[method]), f"{rows[0]['share_of_backbone']:.2%}"]
        if full:
            cells += [f"{statistics.fmean(means[method]) / full:.1%}"]
            cells += [_over_full(results, method, key) for key in (KEPT, SECONDS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


KEPT, SECONDS = "kept_for_backward_bytes", "seconds_a_step"


def _over_full(results: dict, method: str, key: str) -> str:
    ratios = [row[method][key] / row["full"][key] for row in results.values()]
    return f"{statistics.fmean(ratios):.2f}"


def targets(results: dict) -> str:
    """Return a Markdown list of the default's targets, and whether it meets them."""
    means = overall(results)
    mean = {method: statistics.fmean(scores) for method, scores in means.items()}
    share = mean[DEFAULT] / mean["full"]
    wanted = [("at least 98% of full fine-tuning", share >= 0.98, f"{share:.1%}")]
    for other in ("lora", "bottleneck"):
        lead = mean[DEFAULT] - mean[other]
        wanted.append((f"above {ALL[other].title}", lead > 0, f"{lead:+.1f}"))
    lead = [a - b for a, b in zip(means[DEFAULT], means["frozen"], strict=True)]
    if len(lead) > 1:
        times = statistics.fmean(lead) / statistics.stdev(lead)
        text = f"{statistics.fmean(lead):+.1f}, {times:.1f} deviations of the seeds' differences"
        wanted.append(("above frozen by more than two deviations", times > 2, text))
    return "\n".join(
        f"- {name}: {'met' if met else 'missed'} ({text})" for name, met, text in wanted
    )


def search_table(results: dict) -> str:
    """Return a Markdown table of the search's validation scores; the chosen rate is bold."""
    rates = sorted(
        {r for row in results.values() for m in row.values() for r in m["search"]}, key=float
    )
    lines = [f"| task | method | {' | '.join(rates)} |", "|---" * (2 + len(rates)) + "|"]
    for task, row in results.items():
        for method, found in row.items():
            cells = []
            for rate in rates:
                score = found["search"].get(rate)
                text = "" if score is None else f"{score:.1f}"
                cells.append(f"**{text}**" if float(rate) == found["rate"] and text else text)
            lines.append(f"| {task} | {ALL[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """Return the commit, the version of torch and the machine."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent
        )
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "commit": git("rev-parse", "--short=12", "HEAD") + changed,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def write(schedule, grid, final, args: Namespace, hours: float) -> None:
    """Write all files of the report into ``args.output``."""
    results, where = collect(schedule, grid, final, not args.candidates), machine()
    facts = {
        "hours": hours,
        "seeds": args.seeds,
        "rates": args.rates,
        "jobs": schedule.jobs,
        **where,
    }
    with atomic_open(args.output / "results.json", "w") as file:
        json.dump({"setting": facts, "tasks": results}, file, indent=1)
    text = summary_table(results)
    if {"full", "lora", "bottleneck", "frozen", DEFAULT} <= {*args.methods}:
        text += f"\n\n{ALL[DEFAULT].title} on the mean of the tasks:\n\n{targets(results)}"
    steps = ", ".join(
        f"{task} {next(iter(row.values()))['steps']}" for task, row in results.items()
    )
    with atomic_open(args.output / "results.md", "w") as file:
        file.write(
            f"{'Validation' if args.candidates else 'Test'} scores, {args.seeds} seeds: mean ± "
            f"standard deviation. Steps: {steps}. "
            f"{hours:.2f} hours with {schedule.jobs} runs side by side, one thread each, "
            f"{where['device']}, torch {where['torch']}, commit {where['commit']}. Scores: "
            + ", ".join(f"{task} {TASKS[task].metric}" for task in results)
            + ". Trained: share of the backbone. Kept: bytes kept for the backward pass, and time: "
            f"seconds a step, relative to full fine-tuning, mean of the tasks.\n\n{text}\n\n"
            f"Validation scores of the search (seed 0), by learning rate over the heads'; "
            f"chosen: bold.\n\n{search_table(results)}\n"
        )
    plot_scores(results, args.output / "scores.png")
    plot_curves(results, args.output / "curves.png")
    if all(method in args.methods for method in PAIR):
        # In a file of their own: photographs may not be free to show.
        for name, drawn in (("pairs.png", True), ("pairs_given.png", False)):
            tasks = [task for task in results if (TASKS[task].source == "drawn") == drawn]
            if tasks:
                draw_pairs(schedule, final, tasks, args.output / name)
    print(f"\n{text}\n")


def _axes(count: int, rows: int, height: float):
    matplotlib = require("matplotlib", "the plots")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, count, figsize=(3.4 * count, height * rows), squeeze=False)


def _save(figure, path: Path) -> None:
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=110)


def plot_scores(results: dict, path: Path) -> None:
    """Plot a panel for each task: the score of every seed, and the mean, by method."""
    figure, axes = _axes(len(results), 1, 3.6)
    for column, (axis, (task, row)) in enumerate(zip(axes[0], results.items(), strict=True)):
        for place, found in enumerate(row.values()):
            axis.plot(found["scores"], [place] * len(found["scores"]), "o", alpha=0.5, color="C0")
            axis.plot(statistics.fmean(found["scores"]), place, "|", color="black", markersize=16)
        titles = [ALL[method].title for method in row]
        axis.set_yticks(range(len(row)), titles if column == 0 else [""] * len(row))
        axis.invert_yaxis()
        axis.set_title(f"{task}, {TASKS[task].metric}", fontsize=9)
        axis.grid(alpha=0.3)
    _save(figure, path)


def plot_curves(results: dict, path: Path) -> None:
    """Plot training loss and validation score by step for each task, as means of the seeds."""
    figure, axes = _axes(len(results), 2, 3.0)
    for column, (task, row) in enumerate(results.items()):
        for place, (method, found) in enumerate(row.items()):
            style = {"color": f"C{place % 10}", "ls": "-" if place < 10 else "--", "lw": 1.2}
            for axis, curves in zip(
                axes[:, column], (found["losses"], found["curves"]), strict=True
            ):
                steps = [step for step, _ in curves[0]]
                means = [statistics.fmean(v for _, v in at) for at in zip(*curves, strict=True)]
                axis.plot(steps, means, label=ALL[method].title, **style)
        axes[0, column].set_title(f"{task}, training loss", fontsize=9)
        axes[0, column].set_yscale("log")
        axes[1, column].set_title(f"{task}, validation {TASKS[task].metric}", fontsize=9)
    axes[0, 0].legend(fontsize=6)
    _save(figure, path)


def draw_pairs(schedule, final, tasks: list[str], path: Path) -> None:
    """Draw what two methods predict for the same test images: full on the left of each pair."""
    pairs = []
    for place, task in enumerate(tasks):
        count = PAIRS // len(tasks) + (place < PAIRS % len(tasks))
        sides = [_draw(final[task, m][0], schedule, count) for m in PAIR]
        pairs += [_beside(*two) for two in zip(*sides, strict=True)]
    width, gap = max(p.width for p in pairs), 8
    sheet = Image.new("RGB", (2 * width + gap, -(-len(pairs) // 2) * (PANEL + gap)), "white")
    for place, pair in enumerate(pairs):
        sheet.paste(pair, (place % 2 * (width + gap), place // 2 * (PANEL + gap)))
    with rename_atomically(path) as temporary:
        sheet.save(temporary, format="PNG")


@torch.no_grad()
def _draw(run: Run, schedule, count: int) -> list[Image.Image]:
    sources: Sources = schedule.sources
    data, file = TASKS[run.task].load(sources, "test"), schedule.folder(run) / MODEL
    model, config = build(run, data.classes, data.category_ids)
    load_state(model, model_state(load_file(file), str(file)), str(file))
    pictures = []
    for place in range(0, len(data.records), -(-len(data.records) // count)):
        image, _ = read_example(data.records[place], data)
        found = model.eval()([image])[0]
        if data.coco is None:
            drawn = draw_labels(image, found["labels"])
        else:
            drawn = draw_instances(image, found, config.classes, DRAWN_FROM)
        picture = Image.fromarray(drawn.permute(1, 2, 0).numpy())
        pictures.append(picture.resize((picture.width * PANEL // picture.height, PANEL)))
    return pictures


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    pair = Image.new("RGB", (left.width + right.width + 2, left.height), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + 2, 0))
    return pair
