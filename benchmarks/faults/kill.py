"""SIGKILL at a random moment of a training; the resumed run must end as an uninterrupted one."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from .outcome import Campaign, Outcome
from .runs import PATIENCE, Forked, Training, draw_data

# (framework, processes): kills at full scale, 200 together.
KILLS = {
    ("torchvision", 1): 120,
    ("detectron2", 1): 60,
    ("detectron2", 2): 20,
}
IN_A_ROW = 10  # kills of one training before it may end


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Kill trainings of each framework again and again."""
    data = draw_data(campaign.folder / "data")
    for (framework, processes), kills in KILLS.items():
        if framework not in campaign.frameworks:
            continue
        what = f"SIGKILL, {framework}, {processes} process{'es' * (processes > 1)}"
        training = Training(framework, data, campaign.folder / "whole", processes)
        began = time.monotonic()
        status = Forked(training.run, campaign.folder / "log").wait(PATIENCE)
        if status:
            log = (campaign.folder / "log").read_text()
            yield Outcome(what, f"a training without a kill ended with {status}: {log[-300:]}")
            continue
        took, expected = time.monotonic() - began, training.weights()
        left = len(campaign.tries(kills))
        while left > 0:
            chain = replace(training, output=campaign.folder / "killed").fresh()
            for outcome in _chain(campaign, chain, min(left, IN_A_ROW), took, expected):
                yield replace(outcome, what=what)
                left -= 1


def _chain(campaign, training, kills, took, expected) -> Iterator[Outcome]:
    """Kill one training at most so many times, then let it end; yield an outcome for each kill."""
    before, notes = 0, []
    while len(notes) < kills and before < training.steps:
        moment = campaign.random.uniform(0, took)
        process = Forked(training.run, campaign.folder / "log")
        process.wait(moment)
        one = campaign.random.choice(process.members() or [process.pid])
        whole = campaign.random.random() < 0.5  # a cluster kills all, the kernel only one
        process.signal(signal.SIGKILL, None if whole else one)
        if not process.gone(PATIENCE):
            process.end()
            notes.append(Outcome("", f"processes were left {PATIENCE} s after one was killed"))
            continue
        try:
            step = training.newest()
        except Exception as error:
            yield Outcome("", f"damaged checkpoint after {moment:.2f} s: {error}"[:200])
            return
        lost = f"the checkpoint of step {before} is gone" if step < before else ""
        notes.append(Outcome("", lost, f"killed after {moment:.2f} s, checkpoint of step {step}"))
        before, training = step, replace(training, resume=step > 0)
    last = Forked(training.run, campaign.folder / "log")
    status = last.wait(PATIENCE)
    last.end()
    if status == 0 and _same(training.weights(), expected):
        yield from notes
        return
    why = "other weights" if status == 0 else f"status {status}: {last.said().strip()[-200:]}"
    yield from notes[:-1]
    yield replace(notes[-1], lost=f"resumed after {len(notes)} kills: {why}")


def _same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
