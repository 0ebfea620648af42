"""Small trainings on drawn data, in processes that a fault can meet."""

import contextlib
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpu.subjects import COUNT, SIZE, has_detectron2, write_data
from torch import Tensor

from e3va.cli.main import main as e3va

STEPS, EVERY = 16, 3  # length of a training, steps between its checkpoints
CHECKPOINT = {"torchvision": "training.pth", "detectron2": "last_checkpoint"}
PATIENCE = 120  # seconds after which a process hangs


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        framework: ``"torchvision"`` or ``"detectron2"``.
        data: folder of images and labels.
        output: its output folder.
        processes: number of processes.
        resume: whether it continues.
        steps: its length.
        more: further options, words of the command line.
    """

    framework: str
    data: Path
    output: Path
    processes: int = 1
    resume: bool = False
    steps: int = STEPS
    more: tuple[str, ...] = ()

    def run(self) -> int:
        """Run it in this process, and return its exit status."""
        if self.framework == "torchvision":
            return e3va(["train", *self._torchvision(), *["--resume"] * self.resume, *self.more])
        from e3va.detectron2 import engine

        engine.run(self._detectron2())
        return 0

    def _torchvision(self) -> list[str]:
        options = {
            "--images": self.data / "images",
            "--labels": self.data / "labels",
            "--classes": ",".join(map(str, range(COUNT))),
            "--preset": "swin_nano",
            "--trunk": "random",
            "--size": min(SIZE),
            "--steps": self.steps,
            "--checkpoint-every": EVERY,
            "--device": "cpu",
            "--output": self.output,
        }
        return [str(word) for pair in options.items() for word in pair]

    def _detectron2(self):
        from detectron2.engine import default_argument_parser

        options = {
            "data.train.images": self.data / "images",
            "data.train.labels": self.data / "labels",
            "data.classes": f"[{','.join(f'c{n}' for n in range(COUNT))}]",
            "data.train.short_edge": f"[{min(SIZE)}]",
            "model.backbone.bottom_up.preset": "swin_nano",
            "model.backbone.bottom_up.highway.rank": 4,
            "model.backbone.out_channels": 16,
            "model.sem_seg_head.conv_dims": 32,
            "train.device": "cpu",
            "train.eval_period": 0,
            "train.log_period": 1,
            "train.seed": 1,
            "train.max_iter": self.steps,
            "train.checkpointer.period": EVERY,
            "train.output_dir": self.output,
            "dataloader.train.num_workers": 0,
            "dataloader.train.total_batch_size": 2,
        }
        words = ["--config-file", "custom/semantic_fpn_e3va_swin_t.py"]
        words += ["--num-gpus", str(self.processes), *["--resume"] * self.resume]
        words += [f"{key}={value}" for key, value in options.items()]
        return default_argument_parser().parse_args([*words, *self.more])

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint."""
        return (self.output / CHECKPOINT[self.framework]).is_file()

    def newest(self) -> int:
        """Return the number of steps of the newest checkpoint, 0 if there is none.

        Raises:
            Exception: the checkpoint is damaged.
        """
        if not self.has_checkpoint():
            return 0
        path = self.output / CHECKPOINT[self.framework]
        if self.framework == "torchvision":
            return torch.load(path, weights_only=True)["step"]
        return torch.load(self.output / path.read_text(), weights_only=True)["iteration"] + 1

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the finished model."""
        name = "model.pth" if self.framework == "torchvision" else "model_final.pth"
        return torch.load(self.output / name, weights_only=True)["model"]

    def fresh(self) -> "Training":
        """Return the training with an empty output folder."""
        shutil.rmtree(self.output, ignore_errors=True)
        return replace(self, resume=False)


def installed() -> list[str]:
    """Return the frameworks that are installed."""
    return ["torchvision", *["detectron2"] * has_detectron2()]


def draw_data(folder: Path) -> Path:
    """Write the drawn data, and return their folder."""
    write_data(folder)
    return folder


class Forked:
    """A piece of work in a process of its own session, which may start others.

    Attributes:
        log: file of what it prints.
        status: its exit status; None while it runs, negative for a signal.
    """

    def __init__(self, work: Callable[[], int], log: Path):
        self.log, self.status = log, None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            _become(work, log)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end at most so long, and return its status."""
        until = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                break
            else:
                time.sleep(0.005)
        return self.status

    def members(self) -> list[int]:
        """Return the processes of its session that are alive, the first one first."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(folder.name))
        return sorted(found)

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to one of its processes, or to all."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if pid is None else os.kill(pid, number)

    def gone(self, seconds: float) -> bool:
        """Wait at most so long until none of its processes is left."""
        until = time.monotonic() + seconds
        self.wait(seconds)
        while self.members():
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def end(self) -> None:
        """Kill all that is left of it."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def said(self) -> str:
        """Return what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _become(work: Callable[[], int], log: Path) -> None:
    """Run work in the forked process, and end it."""
    status = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(file, number)
        status = work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status & 0xFF)


def complaint(said: str) -> str:
    """Return what is wrong with the output of a command that failed: not one line of error."""
    if "Traceback" in said:
        return f"traceback: {said.strip().splitlines()[-1][:160]}"
    if not any(line.startswith("error: ") for line in said.splitlines()):
        return f"no line of error: {said.strip()[-160:]!r}"
    return ""
