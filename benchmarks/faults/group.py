"""A process of two or four dies, hangs or is suspended: all end, with a message."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from .outcome import Campaign, Outcome
from .runs import Forked, Training, complaint, draw_data

TRIES = 20
DIES = 60  # seconds until all processes have ended after one died
SUSPENDED = 20  # seconds for which one is suspended; then it goes on, and the training ends well
WHOLE = 300  # seconds for a training in several processes


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Kill or suspend one process of a training with Detectron2."""
    if "detectron2" not in campaign.frameworks:
        return
    data = draw_data(campaign.folder / "data")
    for number in campaign.tries(TRIES):
        processes = 2 if number % 4 < 3 else 4
        batch = (f"dataloader.train.total_batch_size={processes}",)
        training = Training(
            "detectron2", data, campaign.folder / "out", processes, steps=60, more=batch
        ).fresh()
        process = Forked(training.run, campaign.folder / "log")
        while process.wait(0.05) is None and not training.has_checkpoint():
            pass
        if process.status is not None:
            yield Outcome("a group of processes", f"it ended too early: {process.said()[-200:]}")
            continue
        victim = campaign.random.choice(_trainers(process))
        one = f"one of {processes} processes"
        if number % 2:
            yield _suspend(f"{one} is suspended for {SUSPENDED} s", process, victim)
        else:
            kind = campaign.random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV))
            yield _kill(f"{one} dies", process, victim, kind)
        process.end()


def _trainers(process: Forked) -> list[int]:
    """Return the processes that train; Python starts another one, which tracks resources."""
    return [
        pid
        for pid in process.members()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def _kill(what: str, process: Forked, victim: int, kind: signal.Signals) -> Outcome:
    began = time.monotonic()
    process.signal(kind, victim)
    if not process.gone(DIES):
        return Outcome(what, f"processes are left {DIES} s after {kind.name}")
    note = f"{kind.name}: all ended after {time.monotonic() - began:.1f} s"
    if process.status == 0:
        return Outcome(what, f"status 0 after {kind.name}")
    return Outcome(what, complaint(process.said()), note)


def _suspend(what: str, process: Forked, victim: int) -> Outcome:
    process.signal(signal.SIGSTOP, victim)
    time.sleep(SUSPENDED)
    process.signal(signal.SIGCONT, victim)
    status = process.wait(WHOLE)
    if status != 0:
        return Outcome(what, f"the training ended with {status}: {process.said()[-200:]}")
    return Outcome(what, note="the training went on and ended")
