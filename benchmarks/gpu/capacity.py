"""Part capacity: the largest image and the largest batch that train under a memory limit."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from cost.bench import GIB, Bench
from cost.models import Spec, pick_framework
from cost.worker import out_of_memory

from e3va.utils.seeding import seed_everything

from .part import Part

METHODS = ("full", "lora", "e3va_chain", "e3va_chain lean")
CAPS = (4, 6, 8, 11)  # GiB
SIDES = range(128, 2049, 64)  # shorter sides; the longer one is 5/3 of it
BATCHES = range(1, 17)
IMAGE = (800, 1333)


@dataclass(frozen=True)
class Search:
    """What one process searches.

    Attributes:
        spec: the method and the model.
        caps: memory limits in GiB, ascending.
        sides: shorter sides to choose from, ascending.
        batches: numbers of images to choose from, ascending.
        image: (height, width) of the images of the batch.
        results: the part's file of results.
        short: whether everything is small.
        until: see :class:`gpu.part.Part`.
    """

    spec: Spec
    caps: tuple[float, ...]
    sides: range
    batches: range
    image: tuple[int, int]
    results: Path
    short: bool
    until: float


def run(part: Part) -> None:
    """Search for each method in a process of its own; they share the card and are not timed."""
    preset = "swin_nano" if part.short else "swin_l"
    framework = pick_framework("torchvision" if part.short else None)
    image = (64, 96) if part.short else IMAGE
    methods = ("full", "e3va_chain") if part.short else METHODS
    limits = (CAPS, SIDES, BATCHES)
    if part.short:
        limits = (0.05, 0.1), range(32, 97, 32), range(1, 3)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(methods), mp_context=spawn) as pool:
        running = {}
        for method in methods:
            spec = Spec(method, preset, part.half, framework, str(part.device), *image)
            search = Search(spec, *limits, image, part.results, part.short, part.until)
            running[pool.submit(measure, search)] = method
        for done in as_completed(running):
            with part.attempt(f"capacity of {running[done]}"):
                done.result()


def measure(search: Search) -> None:
    """Search for one method, and append a row for each limit."""
    device = torch.device(search.spec.device)
    part = Part(device, search.short, search.results, search.until)
    bench = Bench(search.spec)
    sides, batches = search.sides, search.batches
    for cap in search.caps:
        if part.out_of_time(10):
            part.record("notes", text=f"capacity of {search.spec.method}, {cap} GiB: no time left")
            continue

        def fits(height: int, width: int, batch: int, cap: float = cap) -> bool:
            return _fits(bench, cap, height, width, batch)

        side = largest(sides, lambda s: fits(s, s * 5 // 3, 1))
        batch = largest(batches, lambda n: fits(*search.image, n))
        part.record(
            "capacity",
            method=search.spec.method,
            preset=search.spec.preset,
            cap=cap,
            image=side and [side, side * 5 // 3],
            batch=batch,
        )
        # What fits under a limit fits under the larger ones.
        sides = sides[sides.index(side or sides[0]) :]
        batches = batches[batches.index(batch or batches[0]) :]


def largest(choices: range, fits: Callable[[int], bool]) -> int | None:
    """Return the largest choice that fits, by halving; None if the smallest does not."""
    low, high = -1, len(choices)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(choices[middle]) else (low, middle)
    return None if low < 0 else choices[low]


def _fits(bench: Bench, cap: float, height: int, width: int, batch: int) -> bool:
    """Return whether a step fits: on CUDA by trying, elsewhere by the bytes that it needed."""
    seed_everything(0)
    if not bench.cuda:
        bench.load(height, width, batch)
        bench.warm_up()
        found = bench.peak()
        return found["peak_bytes"] + sum(found["resident_bytes"].values()) <= cap * GIB
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total), bench.device)
    try:
        bench.load(height, width, batch)
        bench.warm_up()
    except Exception as error:
        if out_of_memory(error):
            return False
        raise
    return True
