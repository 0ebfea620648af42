"""Two trainings into one folder at once: the second is refused, and the first is not disturbed."""

from collections.abc import Iterator
from dataclasses import replace

from .outcome import Campaign, Outcome
from .runs import PATIENCE, Forked, Training, complaint, draw_data

TRIES = 10


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Start a second training while the first one runs, fresh or with --resume."""
    data = draw_data(campaign.folder / "data")
    kinds = campaign.frameworks
    for number in campaign.tries(TRIES):
        framework = kinds[number % len(kinds)]
        first = Training(framework, data, campaign.folder / "out").fresh()
        what = f"two trainings into one folder, {framework}"
        one = Forked(first.run, campaign.folder / "one")
        while one.wait(0.005) is None and not first.has_checkpoint():
            pass
        resumes = campaign.random.random() < 0.5
        second = replace(first, resume=resumes)
        two = Forked(second.run, campaign.folder / "two")
        statuses = two.wait(PATIENCE), one.wait(PATIENCE)
        for process in (one, two):
            process.end()
        yield Outcome(what, _lost(first, statuses, two.said()), f"second with --resume: {resumes}")
        left = first.output / ".lock"
        yield Outcome("a lock that is left behind", str(left) if left.exists() else "")


def _lost(first: Training, statuses: tuple, said: str) -> str:
    if None in statuses:
        return "one of them hangs"
    if statuses[1] != 0:
        return "the first one failed"
    try:
        first.weights()
    except Exception as error:
        return f"the first one's model is damaged: {error}"[:200]
    if statuses[0] == 0:
        return "the second one was not refused"
    return complaint(said)
