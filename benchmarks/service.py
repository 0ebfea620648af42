"""Measure `e3va serve` on this machine: the latency of one client, and many requests of several.

    python benchmarks/service.py ADAPTER ... --images FOLDER [--requests 2000] [--clients 8]

One client: each image is predicted by a request and by a direct call in this process, which reads
the file and computes the same results, in turn. Several clients: they send requests without a
pause; a request is lost without an answer that has results of every task. The server's resident
memory is read after each hundredth of them. Images of equal size that arrive together are one
batch, so an answer may differ by rounding from that to a single request; the table counts those
that are equal to the byte. Writes service.md, service.json and service.png.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cost.report import machine, markdown, where

from e3va.cli.arguments import names_of, whole
from e3va.data.images import read_image
from e3va.swin.shared_passes import share_passes
from e3va.torchvision.data import to_tensor
from e3va.torchvision.loading import load_adapters
from e3va.torchvision.transform import detect
from e3va.utils.atomic import atomic_open, make_folder
from e3va.utils.errors import UserError
from e3va.utils.optional import require
from e3va.utils.paths import find_images
from e3va.utils.progress import Progress

THRESHOLD = 0.5
PARTS = 100  # memory is read so often
MIB = 2**20


@contextmanager
def serving(adapters: list[str], waiting: int):
    """Start a server on a free port; yield its address and its process."""
    command = [sys.executable, "-m", "e3va", "serve", *adapters, "--port", "0"]
    command += ["--waiting", str(waiting)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if " at http" not in line:
            raise UserError("the server did not start: its message is above")
        yield line.split(" at ")[1].split()[0], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def ask(address: str, image: bytes) -> bytes:
    """Send one image and return the answer."""
    request = urllib.request.Request(f"{address}/predict?threshold={THRESHOLD}", data=image)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def resident(process: subprocess.Popen) -> int:
    """Return the bytes of resident memory of a process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def latency(address: str, adapters: list[str], files: list[Path], rounds: int) -> dict:
    """Compare requests with direct calls, in turn."""
    models = load_adapters(names_of(adapters))
    own = [models.set_adapter(name) for name in models.names]

    @torch.no_grad()
    def direct(file: Path) -> None:
        pixels = to_tensor(read_image(file))
        with share_passes(models.trunk):
            for model in own:
                detect(model, pixels, THRESHOLD)

    found: dict[str, list[float]] = {"direct": [], "request": []}
    for number in range(-1, rounds):  # the first round is slower, and does not count
        for file in files:
            content = file.read_bytes()
            seconds = timed(lambda: direct(file)), timed(lambda: ask(address, content))  # noqa: B023
            if number >= 0:
                for name, value in zip(found, seconds, strict=True):
                    found[name].append(value)
    return found


def load(address: str, process, files: list[Path], requests: int, clients: int) -> dict:
    """Send requests of several clients; count the lost ones, and watch the memory."""
    contents = [file.read_bytes() for file in files]
    expected = [ask(address, content) for content in contents]
    tasks = {*json.loads(expected[0])["tasks"]}
    lost: list[str] = []
    memory: list[int] = []
    lock, done, equal = threading.Lock(), 0, 0
    began = time.perf_counter()

    def one(number: int, progress: Progress) -> None:
        nonlocal done, equal
        place = number % len(files)
        try:
            answer = ask(address, contents[place])
            if {*json.loads(answer)["tasks"]} != tasks:
                lost.append(f"{files[place].name}: {answer[:100]!r}")
        except (OSError, ValueError, LookupError) as error:
            answer = b""
            lost.append(f"{files[place].name}: {error}")
        with lock:
            done += 1
            equal += answer == expected[place]
            if done % max(1, requests // PARTS) == 0:
                memory.append(resident(process))
                progress.step(done, {"lost": str(len(lost))})

    with Progress(0, requests, "request", "load") as progress, ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(one, number, progress) for number in range(requests)]:
            future.result()
    return {
        "requests": requests,
        "clients": clients,
        "seconds": time.perf_counter() - began,
        "lost": lost,
        "equal": equal,
        "memory": memory,
    }


def table(one_client: dict, many: dict) -> str:
    """Return both tables."""
    direct, request = (statistics.median(one_client[name]) for name in ("direct", "request"))
    early, last = many["memory"][len(many["memory"]) // 10], many["memory"][-1]
    rows = [
        ["one client", "median, s"],
        ["direct call", f"{direct:.3f}"],
        ["request", f"{request:.3f}"],
        ["request / direct call", f"{request / direct:.2f}"],
    ]
    more = [
        ["requests", "clients", "lost", "equal to the byte", "a second"]
        + ["memory after a tenth, MiB", "change until the end"],
        [str(many["requests"]), str(many["clients"]), str(len(many["lost"])), str(many["equal"])]
        + [f"{many['requests'] / many['seconds']:.1f}", f"{early / MIB:,.0f}"]
        + [f"{last / early - 1:+.1%}"],
    ]
    return f"{markdown(rows)}\n\n{markdown(more)}"


def plot(many: dict, path: Path) -> None:
    """Plot the server's memory over the requests."""
    matplotlib = require("matplotlib", "the plot")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3))
    step = many["requests"] / len(many["memory"])
    places = [step * number for number in range(1, len(many["memory"]) + 1)]
    axis.plot(places, [value / MIB for value in many["memory"]])
    axis.set(xlabel="requests", ylabel="resident memory, MiB", ylim=(0, None))
    axis.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER")
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--requests", type=whole(1), default=2000)
    parser.add_argument("--clients", type=whole(1), default=8)
    parser.add_argument("--rounds", type=whole(1), default=3, help="of all images by one client")
    parser.add_argument("--output", type=Path, default=Path("output/service"))
    args = parser.parse_args()
    try:
        files = find_images([args.images])
        make_folder(args.output)
        with serving(args.adapters, 2 * args.clients) as (address, process):
            one_client = latency(address, args.adapters, files, args.rounds)
            many = load(address, process, files, args.requests, args.clients)
    except UserError as error:
        print(f"error: {error.line}", file=sys.stderr)
        return 1
    about = {"machine": machine("cpu")}
    text = f"{__doc__.splitlines()[0]}\n\n{table(one_client, many)}\n\n{where(about)}\n"
    with atomic_open(args.output / "service.md", "w") as file:
        file.write(text)
    with atomic_open(args.output / "service.json", "w") as file:
        json.dump({**about, "one client": one_client, "several clients": many}, file, indent=1)
    plot(many, args.output / "service.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
