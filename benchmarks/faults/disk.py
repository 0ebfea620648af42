"""A full disk at each write, and an output folder that cannot be written, vanishes or is a file."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .outcome import Campaign, Outcome
from .runs import PATIENCE, Forked, Training, complaint, draw_data

FULL, CHANGED = 28, 12  # tries at full scale, of both kinds
ENOUGH = 2**28  # bytes of a disk that does not fill up


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Fill the disk, then change the output folder."""
    data = draw_data(campaign.folder / "data")
    for framework in campaign.frameworks:
        training = Training(framework, data, campaign.folder / "out")
        yield from _fill(campaign, training)
        yield from _change(campaign, training)


def _fill(campaign: Campaign, training: Training) -> Iterator[Outcome]:
    """Train on disks of random sizes, from nothing to what the training needs."""
    what = f"disk full, {training.framework}"
    whole = Forked(training.fresh().run, campaign.folder / "log")
    if whole.wait(PATIENCE):
        yield Outcome(what, f"a training with room ended with {whole.status}")
        return
    needed = sum(file.stat().st_size for file in training.output.rglob("*") if file.is_file())
    for _ in campaign.tries(FULL // 2):
        size = campaign.random.randrange(16 * 1024, needed)
        with _mounted(campaign.folder / "disk", size) as disk:
            if disk is None:
                return
            yield _on_disk(what, campaign, replace(training, output=disk / "out"), size)


def _on_disk(what: str, campaign: Campaign, training: Training, size: int) -> Outcome:
    process = Forked(training.run, campaign.folder / "log")
    status = process.wait(PATIENCE)
    process.end()
    said, note = process.said(), f"{size} bytes"
    if status is None:
        return Outcome(what, f"it hangs on a disk of {size} bytes")
    if status == 0:  # there was just room
        return Outcome(what, note=f"{note}: ended")
    lost = complaint(said)
    line = next((line for line in said.splitlines() if line.startswith("error: ")), "")
    if not lost and str(training.output) not in line:
        lost = f"the line names no file: {line[:160]}"
    if not lost and list(training.output.glob(".*.tmp")):
        lost = "a half-written file is left"
    try:
        step = training.newest()
    except Exception as error:
        return Outcome(what, f"damaged checkpoint on a disk of {size} bytes: {error}"[:200])
    return Outcome(what, lost, f"{note}: checkpoint of step {step}; {line}")


def _change(campaign: Campaign, training: Training) -> Iterator[Outcome]:
    """Change the output folder in the middle of a training."""
    changes = {"removed": _remove, "replaced by a file": _replace, "read-only": _forbid}
    for number in campaign.tries(CHANGED // 2):
        name = [*changes][number % len(changes)]
        what = f"output folder {name}, {training.framework}"
        with _mounted(campaign.folder / "disk", ENOUGH) as disk:
            if disk is None:
                return
            own = replace(training, output=disk / "out")
            process = Forked(own.run, campaign.folder / "log")
            while process.wait(0.002) is None and not own.has_checkpoint():
                pass
            changes[name](own.output)
            status = process.wait(PATIENCE)
            process.end()
            said = process.said()
        if status is None:
            yield Outcome(what, "it hangs")
        elif status == 0:
            yield Outcome(what, note="it had ended before")
        else:
            yield Outcome(what, complaint(said), said.strip().splitlines()[-1][:300])


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # the training may write into it meanwhile


def _replace(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("")


def _forbid(folder: Path) -> None:
    # A disk with open files cannot be made read-only, so a read-only one covers the folder.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], check=True)


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Path | None]:
    """Mount a disk of so many bytes; None where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        print("no small disk can be mounted here: this fault is left out")
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", str(folder)], check=True)
