"""Broken and hostile files: one line, no file outside, no code run, no crash."""

import contextlib
import copy
import functools
import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch
from PIL import Image

from e3va import E3VABackbone
from e3va.adapter_files.files import CONFIG_FILE, MODEL_FILE, read_adapter, save_adapter
from e3va.cli.main import main as e3va
from e3va.model_zoo.catalogue import parse_table
from e3va.utils.errors import UserError
from e3va.weights.checkpoint import load_file, model_state

from .outcome import Campaign, Outcome
from .runs import Forked

TRIES, BATCH = 500, 50  # of each kind of file; tries in one process
PATIENCE = 300  # seconds for a batch
MOST_BYTES = 16 * 2**30  # of address space, so that a bomb is seen
CANARY = "canary"  # a folder that only code in a file would make

Try = Callable[[Random, Path], str]  # returns what is lost


def run(campaign: Campaign) -> Iterator[Outcome]:
    """Try each kind of file, in processes that may crash."""
    for name, attempt in KINDS.items():
        numbers = list(campaign.tries(TRIES))
        seeds = {number: campaign.random.getrandbits(32) for number in numbers}
        while numbers:
            batch, results = numbers[:BATCH], campaign.folder / "results"
            results.unlink(missing_ok=True)
            drawn, work = [seeds[number] for number in batch], campaign.folder / "work"
            do = functools.partial(_batch, drawn, attempt, work, results)
            process = Forked(do, campaign.folder / "log")
            process.wait(PATIENCE)
            process.end()
            lines = results.read_text().splitlines() if results.is_file() else []
            for number, line in zip(batch, lines, strict=False):
                lost = json.loads(line)
                yield Outcome(name, f"seed {seeds[number]}: {lost}" if lost else "")
            if len(lines) < len(batch):
                seed = seeds[batch[len(lines)]]
                yield Outcome(name, f"seed {seed}: the process ended with {process.status}")
                lines.append("")
            numbers = numbers[len(lines) :]


def _batch(seeds: list[int], attempt: Try, work: Path, results: Path) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for seed in seeds:
        shutil.rmtree(work, ignore_errors=True)
        (work / "in").mkdir(parents=True)
        os.chdir(work)
        lost = attempt(Random(seed), work / "in")
        if (work / CANARY).exists() or (work / "in" / CANARY).exists():
            lost = "code in the file ran"
        with results.open("a") as file:
            file.write(json.dumps(lost) + "\n")
    return 0


def refused(read: Callable[[], object]) -> str:
    """Return what is lost when a file is read: an error that is not one line for a user."""
    try:
        read()
    except UserError as error:
        return "" if len(error.line) < 1000 else f"a line of {len(error.line)} characters"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


# --- mutations


def mutate_json(random: Random, data: object) -> object:
    """Return a copy with one to three changes at random places."""
    data = copy.deepcopy(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(data))
        owner, key = random.choice(places)
        kind = random.randrange(4)
        if kind == 0:
            del owner[key]
        elif kind == 1:
            owner[key] = random.choice(VALUES)
        elif kind == 2:
            owner[key] = [copy.deepcopy(owner[key])] * random.choice((1, 2, 50))
        else:
            other, name = random.choice(places)
            with contextlib.suppress(LookupError):
                owner[key] = copy.deepcopy(other[name])
    return data


VALUES = [
    *(None, True, "", "x", "../../up", "\0", "é" * 300, [], {}, [[]], [None], {"a": {"b": []}}),
    *(-1, 0, 1, 0.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 2**200, 10**400),
]


def _places(value: object) -> Iterator[tuple]:
    if isinstance(value, dict):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Return bytes that were flipped, cut, repeated or replaced, most of them near the start."""
    data = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        where = int(len(data) * random.random() ** 4)
        kind = random.randrange(4)
        if kind == 0 and data:
            data[min(where, len(data) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[where:]
        elif kind == 2:
            data[where:where] = data[where : where + random.randrange(1, 64)]
        else:
            data[where : where + 8] = random.choice((b"\xff" * 8, b"\0" * 8, random.randbytes(8)))
    return bytes(data)


def text_of(random: Random, data: object) -> bytes:
    """Return JSON; sometimes with broken bytes."""
    text = json.dumps(data).encode()
    return mutate_bytes(random, text) if random.random() < 0.2 else text


# --- the kinds of files


def coco(random: Random, folder: Path) -> str:
    """Check a COCO file with the command; its output goes beside the data."""
    (folder / "images").mkdir()
    Image.new("RGB", (64, 48), (90, 60, 30)).save(folder / "images" / "1.png")
    square = {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "area": 400}
    square |= {"bbox": [8, 24, 20, 20], "segmentation": [[8, 24, 28, 24, 28, 44, 8, 44]]}
    runs = {"size": [48, 64], "counts": [12 * 48, 20, 64 * 48 - 12 * 48 - 20]}
    good = {
        "images": [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}],
        "categories": [{"id": 3, "name": "red"}],
        "annotations": [square, {**square, "id": 2, "segmentation": runs}],
    }
    (folder / "data.json").write_bytes(text_of(random, mutate_json(random, good)))
    before = {*folder.parent.rglob("*")}
    said = io.StringIO()
    options = ["--images", folder / "images", "--output", folder / "out"]
    words = [str(word) for word in ("check", folder / "data.json", *options)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = e3va(words)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200]
    new = {p for p in folder.parent.rglob("*") if p not in before}
    outside = [path for path in new if folder / "out" not in (path, *path.parents)]
    if outside:
        return f"wrote {outside[0]}"
    if "Traceback" in said.getvalue():
        return "traceback"
    return "" if status in (0, 1) else f"status {status}"


def _adapter(folder: Path) -> Path:
    torch.manual_seed(0)
    save_adapter(E3VABackbone("swin_nano"), folder / "adapter")
    return folder / "adapter"


def adapter(random: Random, folder: Path) -> str:
    """Read an adapter whose description is broken, in its own file or in the header."""
    path = _adapter(folder)
    file = path / CONFIG_FILE
    file.write_bytes(text_of(random, mutate_json(random, json.loads(file.read_text()))))
    return refused(lambda: read_adapter(path))


def safetensors(random: Random, folder: Path) -> str:
    """Read a safetensors file with a broken header or broken bytes."""
    file = _adapter(folder) / MODEL_FILE
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if random.random() < 0.5:
        header = mutate_json(random, json.loads(data[8 : 8 + size]))
        text = text_of(random, header)
        data = len(text).to_bytes(8, "little") + text + data[8 + size :]
    else:
        data = mutate_bytes(random, data)
    file.write_bytes(data)
    return refused(lambda: read_adapter(file)) or refused(lambda: load_file(file))


TABLE = {
    "format": 1,
    "trunks": {
        "swin_x": {
            **{"preset": "swin_t", "pretraining": "ImageNet", "file": "trunks/x.pth"},
            **{"url": "https://example.org/x.pth", "sha256": "0" * 64, "size": 100},
        }
    },
    "adapters": {
        "fruit": {
            **{"trunk": "swin_x", "sha256": {"adapter_model.safetensors": "0" * 64}},
            **{"description": "fruit", "scores": {"mIoU": 50.0}},
        }
    },
}


def zoo_table(random: Random, folder: Path) -> str:
    """Parse a zoo's table."""
    data = text_of(random, mutate_json(random, TABLE))
    return refused(lambda: parse_table(data, "zoo.json"))


class _Evil:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def checkpoint(random: Random, folder: Path) -> str:
    """Read a checkpoint that is broken, or whose pickle calls functions."""
    path, buffer = folder / "model.pth", io.BytesIO()
    tensors = {"patch_embed.proj.weight": torch.zeros(4, 3, 4, 4), "step": 3}
    torch.save({"model": tensors}, buffer)
    data = buffer.getvalue()
    if random.random() < 0.5:
        path.write_bytes(mutate_bytes(random, data))
    else:
        evil = random.choice(
            (
                _Evil(os.mkdir, CANARY),
                _Evil(os.system, f"mkdir {CANARY}"),
                _Evil(eval, f"__import__('os').mkdir({CANARY!r})"),
                _Evil(exec, f"import os; os.mkdir({CANARY!r})"),
                _Evil(torch.load, CANARY),
                _Evil(bytearray, 2**40),
            )
        )
        content = pickle.dumps({"model": {**tensors, "x": evil}}, protocol=2)
        if random.random() < 0.5:
            path.write_bytes(content)
        else:  # in the place of the pickle in torch's archive
            with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
                for info in old.infolist():
                    inner = content if info.filename.endswith("data.pkl") else old.read(info)
                    new.writestr(info, inner)
    return refused(lambda: model_state(load_file(path), str(path)))


KINDS: dict[str, Try] = {
    "broken COCO file": coco,
    "broken adapter description": adapter,
    "broken safetensors file": safetensors,
    "broken zoo table": zoo_table,
    "broken or hostile checkpoint": checkpoint,
}
