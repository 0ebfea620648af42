"""The report on the runs: results.json, results.md, plots and pictures."""

import json
import platform
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from e3va.torchvision.curves import read_metrics
from e3va.torchvision.models import read_trunk
from e3va.utils.atomic import atomic_open

from . import tables
from .comparisons import COMPARISONS, Plan, Rates, seconds_a_step
from .paired import PAIRS, Difference, compare, corrected
from .pictures import draw_pairs
from .plots import plot_curves, plot_front, plot_scores
from .runs import KNOWN, TEST, Run, validation
from .tasks import TASKS, Task

if TYPE_CHECKING:
    from .schedule import Schedule

PICTURES = ("scores.png", "curves.png", "front.png", "pairs.png", "pairs_given.png")


class Report:
    """The results of the comparisons that are complete.

    Args:
        schedule: the schedule that has done the runs.
        args: options of the command.
        grid: the runs of the search for a learning rate.
        best: learning rate of each method by kind of task.
    """

    def __init__(self, schedule: "Schedule", args: Namespace, grid: Plan, best: Rates):
        self.schedule, self.args, self.grid, self.best = schedule, args, grid, best
        self.plans: dict[str, Plan] = {}
        self.results: dict[str, dict] = {}  # comparison → task → method → measurements

    def add(self, comparison: str, plan: Plan) -> None:
        """Read the results of a comparison; equal steps come first."""
        self.plans[comparison] = plan
        self.results[comparison] = found = {}
        preset = read_trunk(self.args.trunk)[1]
        for (task, method), row in plan.items():
            rank = KNOWN[method].rank(preset)
            found.setdefault(task, {})[method] = {
                "title": KNOWN[method].title,
                "rank": rank,
                **measure(self.schedule, row, tested=not self.args.candidates),
            }

    def paired(self) -> list[Difference]:
        """Return the paired differences at equal steps and at equal seconds."""
        if not self._full():
            return []
        found = []
        for name in ("steps", "seconds"):
            scores = {
                task: {method: one["scores"] for method, one in row.items()}
                for task, row in self.results.get(name, {}).items()
                if task in self._full()
            }
            for pair in PAIRS:
                if scores and {*pair} <= {*self.args.methods}:
                    found.append(compare(name, scores, self._full(), *pair))
        return corrected(found)

    def _full(self) -> dict[str, float]:
        has_full = "full" in self.args.methods and not self.args.candidates
        return tables.full_means(self.results["steps"]) if has_full else {}

    def rates(self) -> dict[str, dict]:
        """Return method → the chosen ``rates`` by kind of task, and the ``search``.

        The search is task → rate → validation score.
        """
        found: dict[str, dict] = {}
        for (kind, method), rate in self.best.items():
            found.setdefault(method, {"rates": {}, "search": {}})["rates"][kind] = rate
        for (task, method), row in self.grid.items():
            scores = {f"{r.rate:g}": validation(r, self.schedule.folder(r))[-1][1] for r in row}
            found[method]["search"][task] = scores
        return found

    def write(self, hours: float) -> None:
        """Write all files of the report into the output folder, and print the tables."""
        output, paired, steps = self.args.output, self.paired(), self.results["steps"]
        flat = tables.flatness(steps) if "full" in self.args.methods else {}
        facts = {
            "hours": hours,
            "seeds": self.args.seeds,
            "front_seeds": self.args.front_seeds,
            "rates": self.args.rates,
            "precision": self.args.precision,
            "trunk": self.args.trunk,
            "jobs": self.schedule.jobs,
            **machine(self.schedule.device),
        }
        found = {
            "setting": facts,
            "comparisons": self.results,
            "paired": [row.to_json() for row in paired],
            "flatness": flat,
            "rates": self.rates(),
        }
        with atomic_open(output / "results.json", "w") as file:
            json.dump(found, file, indent=1)
        text = self._sections(paired, flat)
        with atomic_open(output / "results.md", "w") as file:
            file.write(f"{self._introduction(facts)}\n\n{text}\n")
        for name in PICTURES:  # an earlier call may have had other methods
            (output / name).unlink(missing_ok=True)
        plot_scores(steps, self.results.get("seconds"), output / "scores.png")
        plot_curves(steps, output / "curves.png")
        if "front" in self.results and self._full():
            plot_front(self.results["front"], output / "front.png")
        if not self.args.candidates:
            draw_pairs(self.schedule, self.plans["steps"])
        print(f"\n{text}\n")

    def _introduction(self, facts: dict) -> str:
        tasks = [
            f"{task} {TASKS[task].metric} ({next(iter(row.values()))['steps']} steps"
            f"{_detections(TASKS[task])})"
            for task, row in self.results["steps"].items()
        ]
        left_out = self.results["steps"].keys() - self._full() if self._full() else ()
        omitted = "".join(f" Full scores 0 on {task}, which is left out." for task in left_out)
        what = "Validation" if self.args.candidates else "Test"
        return (
            f"{what} scores, mean ± standard deviation. Seeds: {facts['seeds']}. Tasks: "
            f"{', '.join(tasks)}. Trunk: {facts['trunk']}. Precision: {facts['precision']}. "
            f"{facts['hours']:.2f} hours with {facts['jobs']} runs side by side, one thread each, "
            f"{facts['device']} ({facts['machine']}), torch {facts['torch']}, commit "
            f"{facts['commit']}.\n\n% of full: the score relative to the mean score of full "
            f"fine-tuning, mean of the tasks.{omitted} Trained: share of the backbone's "
            "parameters. Kept: bytes kept for the backward pass. Time: seconds of the whole "
            "training. Kept, time and steps are relative to full fine-tuning, mean of the tasks."
        )

    def _sections(self, paired: list[Difference], flat: dict) -> str:
        parts = []
        for name, results in self.results.items():
            parts.append(f"## {COMPARISONS[name].capitalize()}\n")
            if name == "front":
                parts.append(FRONT_TEXT.format(seeds=self.args.front_seeds))
            parts.append(tables.summary_table(results, more_steps=name == "seconds") + "\n")
        if paired:
            parts += ["## Which differences are significant\n", PAIRED_TEXT]
            parts.append(tables.paired_table(paired) + "\n")
        if flat:
            parts += ["## Is the curve of full fine-tuning flat at the end?\n", FLAT_TEXT]
            parts.append(tables.flatness_table(flat) + "\n")
        titles = {m: r["title"] for m, r in next(iter(self.results["steps"].values())).items()}
        parts += ["## Learning rates\n", RATES_TEXT, tables.rates_table(self.rates(), titles)]
        return "\n".join(parts)


FRONT_TEXT = "Seeds: {seeds}. Every rank trains with the learning rate of the method's own rank.\n"
PAIRED_TEXT = (
    "Differences of the scores of the same task and seed, in per cent of full fine-tuning's mean "
    "score of the task. p: Wilcoxon's signed-rank test over all tasks and seeds, two-sided; Holm's "
    "correction is over all rows. A method is ahead or behind if the corrected p is below 0.05. "
    "Seeds of one task are no independent evidence for other tasks: the 95% interval (Student's t) "
    "is over the means of the tasks.\n"
)
FLAT_TEXT = (
    "Validation scores of full fine-tuning at equal steps, mean of the seeds. Flat: the last "
    f"quarter of the steps gained at most {tables.FLAT:.0%} of the score, or at most the standard "
    "deviation of the seeds.\n"
)
RATES_TEXT = (
    "Validation scores of the search (seed 0), by learning rate over the heads' learning rate. A "
    "method has one rate for label maps and one for boxes and masks, whose scores are bold: it has "
    "the best mean over these tasks of the score relative to the method's best score of the task.\n"
)


def _detections(task: Task) -> str:
    other = task.detections != Task.detections
    return f", at most {task.detections} detections an image" if other else ""


def measure(schedule: "Schedule", row: list[Run], tested: bool) -> dict:
    """Return the measurements of a method on a task: the runs of all seeds.

    The scores are test scores, or else the last validation scores.
    """
    folders, metric = [schedule.folder(run) for run in row], TASKS[row[0].task].metric
    curves = [validation(run, folder) for run, folder in zip(row, folders, strict=True)]
    summary, seconds = schedule.summary(row[0]), seconds_a_step(schedule, row)
    backbone = [summary["parameters"][part] for part in ("trunk", "highway")]
    trained = sum(part["trained"] for part in backbone)
    return {
        "rate": row[0].rate,
        "steps": row[0].steps,
        "scores": [_test_score(f, metric) for f in folders]
        if tested
        else [c[-1][1] for c in curves],
        "trained_in_backbone": trained,
        "share_of_backbone": trained / sum(part["all"] for part in backbone),
        "kept_for_backward_bytes": summary["kept_for_backward_bytes"],
        "seconds_a_step": seconds,
        "seconds": seconds * row[0].steps,
        "curves": curves,
        "losses": [_losses(folder) for folder in folders],
    }


def _test_score(folder: Path, metric: str) -> float:
    return json.loads((folder / TEST).read_text())["scores"][metric]


def _losses(folder: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in read_metrics(folder) if "loss" in m]


def machine(device: str) -> dict[str, str]:
    """Return the commit, the version of torch, the machine and the device."""

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
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
    }
