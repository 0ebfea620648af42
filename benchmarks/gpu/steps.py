"""Part steps: time and memory of a training step, as ratios to full fine-tuning."""

import time
from argparse import Namespace

from cost.models import pick_framework
from cost.schedule import Setting, Table

from .part import Part

METHODS = ("full", "frozen", "lora", "e3va_chain plain", "e3va_chain", "e3va_chain lean", "e3va")
# The largest model first, whose promise is the largest.
RUNS = [("swin_l", 1), ("swin_t", 1), ("swin_b", 1), ("swin_l", 2), ("swin_t", 2), ("swin_b", 2)]
SIZE = (800, 1333)


def run(part: Part) -> None:
    """Measure as many tables as there is time for."""
    runs, size = (RUNS, SIZE) if not part.short else ([("swin_nano", 1)], (64, 96))
    took = 0.0
    for preset, batch in runs:
        if part.out_of_time(took):
            part.record("notes", text=f"steps of {preset}, batch {batch}: no time left")
            continue
        began = time.monotonic()
        with part.attempt(f"steps of {preset}, batch {batch}"):
            _measure(part, preset, batch, size)
        took = time.monotonic() - began


def _measure(part: Part, preset: str, batch: int, size: tuple[int, int]) -> None:
    setting = Setting(
        preset=preset,
        precision=part.half,
        framework=pick_framework("torchvision" if part.short else None),
        device=str(part.device),
        height=size[0],
        width=size[1],
        batch=batch,
        cap=None,
    )
    methods = METHODS if not part.short else ("full", "e3va_chain")
    rounds = 1 if part.short else 5
    args = Namespace(methods=list(methods), rounds=rounds, rank=16)
    table = Table(setting, args, report_step=lambda what: print(f"  {what}", flush=True))
    part.record("steps", preset=preset, batch=batch, cost=table.measure())
