"""Run the commands on every odd data set, in this checkout and in an earlier one.

    python -m benchmarks.odd_files [--before CHECKOUT] [--only TEXT] [--output FILE]

For each case of :mod:`benchmarks.odd_files.cases` the table says what ``e3va check``, ``e3va
train`` (one step, scored on the same data) and the Detectron2 training script (the same) do. Where
the data can be read, the objects that were read are also scored as if a model had predicted them:
anything but AP 100 is a wrong score. Takes about ten minutes on two cores for each checkout.
"""

import argparse
import contextlib
import inspect
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .cases import CASES, Case

LIMIT = 180  # seconds for a case
COLUMNS = ("check", "e3va train", "Detectron2")
HERE = Path(__file__).parent.parent.parent
# A model of a few hundred thousand parameters.
SMALL = (
    *("train.max_iter=1", "train.device=cpu", "dataloader.train.num_workers=0"),
    *("dataloader.test.num_workers=0", "data.train.short_edge=[64]", "data.val.short_edge=64"),
    "model.backbone.bottom_up.preset=swin_nano",
)


def run_case(title: str, folder: Path, report: Callable[[str, str], None]) -> None:
    """Run all commands on a case; ``report`` gets a column and what the command did."""
    case = CASES[title](folder)
    report("check", _attempt(lambda: _check(case, folder / "report")))
    report("e3va train", _attempt(lambda: _train(case, folder / "output")))
    report("Detectron2", _attempt(lambda: _detectron2(case, folder / "output2")))


def _attempt(work) -> str:
    """Return what a command did; a traceback becomes the name and text of its exception."""
    from e3va.utils.errors import UserError

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return work()
    except UserError as error:
        return f"refused: {error.line}"
    except SystemExit as error:
        return f"exit {error.code}: {_last_line(output)}"
    except BaseException as error:
        return f"TRACEBACK {type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _last_line(output: io.StringIO) -> str:
    return (output.getvalue().strip().splitlines() or [""])[-1].removeprefix("error: ")


def _command(*arguments: str) -> str | None:
    """Run ``e3va``; return None after success, and its error otherwise."""
    from e3va.cli.main import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(arguments)
    return None if status == 0 else _last_line(output)


def _check(case: Case, report: Path) -> str:
    classes = ["--classes", case.classes] if case.classes else []
    images = ["--images", str(case.images)] if case.images else []
    error = _command("check", str(case.annotations), *images, *classes, "--output", str(report))
    file = report / "problems.json"
    counts = json.loads(file.read_text())["counts"] if file.is_file() else {}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    if error is None:
        return f"fine{': ' if found else ''}{found}"
    return f"exit 1: {found or error}"


def _train(case: Case, output: Path) -> str:
    data = []
    for prefix in ("--", "--val-"):
        data += [f"{prefix}images", str(case.images)] if case.images else []
        data += [f"{prefix}{'labels' if case.labels else 'annotations'}", str(case.annotations)]
    classes = ["--classes", case.classes] if case.classes else []
    size = ("--steps", "1", "--size", "64", "--max-size", "128", "--device", "cpu")
    error = _command("train", *data, *classes, *size, *case.options, "--output", str(output))
    if error is not None:
        saved = "" if (output / "model.pth").is_file() else ", no model"
        return f"refused: {error}{saved if (output / 'training.pth').is_file() else ''}"
    score = "" if case.labels else f", {_truth(case)}"
    return f"trains{score}{_invalid_json(output)}"


def _invalid_json(folder: Path) -> str:
    text = "".join(path.read_text() for path in folder.rglob("*.json*"))
    return ", writes NaN as JSON" if "NaN" in text else ""


def _truth(case: Case) -> str:
    """Score the objects that torchvision's framework reads as if they were predictions."""
    from e3va.data.masks import to_rle
    from e3va.torchvision import evaluate
    from e3va.torchvision.data import open_dataset, read_example

    arguments = {}
    with contextlib.suppress(ImportError):
        from e3va.data.coco import ReadOptions

        flags = {"skip_missing": "--skip-missing", "use_crowds": "--use-crowds"}
        given = {name: flag in case.options for name, flag in flags.items()}
        arguments["options"] = ReadOptions(masks=None, **given)
    images = str(case.images) if case.images else None
    dataset = open_dataset(images, str(case.annotations), **arguments)
    results = []
    for record in dataset.records:
        for annotation in dataset.coco.annotations[record["id"]]:
            if annotation["iscrowd"]:
                continue
            result = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
            result["score"] = 1.0
            if annotation.get("segmentation"):
                rle = to_rle(annotation["segmentation"], record["height"], record["width"])
                if isinstance(rle["counts"], bytes):
                    rle = {**rle, "counts": rle["counts"].decode()}
                result["segmentation"] = rle
            results.append(result)
    known = inspect.signature(evaluate.coco_scores).parameters
    limit = int(case.options[-1]) if "--max-detections" in case.options else 100
    given = {"masks": getattr(dataset.coco, "masks", True), "limit": limit}
    given = {name: value for name, value in given.items() if name in known}
    scores = evaluate.coco_scores(results, dataset, **given)
    name, value = list(scores.values.items())[-3 if "AP mask" in scores.values else 0]
    pixels = ""
    if case.pixels:
        mean = read_example(dataset.records[0], dataset)[0].double().mean()
        pixels = f", mean of the first image {mean:.2f}"
    return f"truth scores {name} {value:.1f}{pixels}"


def _detectron2(case: Case, output: Path) -> str:
    from e3va.detectron2 import engine, load_config

    key = "labels" if case.labels else "json"
    data = [f"data.{split}.{key}={case.annotations}" for split in ("train", "val")]
    if case.images:
        data += [f"data.{split}.images={case.images}" for split in ("train", "val")]
    if case.classes:
        data.append(f"data.classes=[{case.classes}]")
    if case.labels:
        data.append("data.train.crop=[32,32]")
    size = [f"train.output_dir={output}", *SMALL]
    name = f"custom/{case.model}_e3va_swin_t.py"
    cfg = engine.prepare(load_config(name, [*data, *size, *case.overrides]))
    engine.train(cfg)
    score = "" if case.labels else f", {_truth_detectron2(cfg)}"
    return f"trains{score}{_invalid_json(output)}"


def _truth_detectron2(cfg) -> str:
    """Score the objects in the evaluator's file as if they were predictions."""
    from detectron2.config import instantiate

    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    coco = evaluator._coco_api
    for image in coco.getImgIds():
        own = coco.loadAnns(coco.getAnnIds(image, iscrowd=0))
        instances = [
            {"image_id": image, "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0}
            | ({"segmentation": coco.annToRLE(a)} if "segm" in evaluator._tasks else {})
            for a in own
        ]
        for instance in instances:
            if isinstance(instance.get("segmentation", {}).get("counts"), bytes):
                instance["segmentation"]["counts"] = instance["segmentation"]["counts"].decode()
            # The evaluator expects contiguous category ids.
            instance["category_id"] = sorted(coco.getCatIds()).index(instance["category_id"])
        evaluator._predictions.append({"image_id": image, "instances": instances})
    scores = evaluator.evaluate()
    task = "segm" if "segm" in scores else "bbox"
    return f"truth scores AP {task} {scores[task]['AP']:.1f}"


def run_all(only: str) -> dict[str, dict[str, str]]:
    """Run all cases with a title that contains ``only``, each in a process of its own."""
    found = {}
    for title in CASES:
        if only in title:
            found[title] = _in_process(title)
            print(title, file=sys.stderr)
            for column in COLUMNS:
                print(f"    {column}: {_short(found[title][column])}", file=sys.stderr, flush=True)
    return found


def _in_process(title: str) -> dict[str, str]:
    """Run a case in a forked process, since some inputs end or stop the whole process."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work() -> None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            run_case(title, Path(folder), lambda *cell: results.put(cell))

    process = context.Process(target=work)
    process.start()
    process.join(LIMIT)
    state = "no end" if process.is_alive() else f"the process ended with {process.exitcode}"
    process.kill()
    found = dict.fromkeys(COLUMNS, "not run")
    while not results.empty():
        column, text = results.get()
        found[column] = text
    missing = [column for column in COLUMNS if found[column] == "not run"]
    if missing:
        found[missing[0]] = state
    return found


def _short(text: str) -> str:
    """Return a cell of the table: without folders, and no longer than a few lines."""
    root = re.escape(tempfile.gettempdir())
    text = re.sub(root + r"/[^\s'\":;,)]*/", "", " ".join(text.split()))
    return re.sub(root + r"/\w+", "FOLDER", text)[:200].replace("|", "¦")


def table(before: dict, now: dict) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| input | command | before | now |", "|---|---|---|---|"]
    for title, cells in now.items():
        for number, column in enumerate(COLUMNS):
            old = _short(before.get(title, {}).get(column, "–"))
            head = title if not number else ""
            lines.append(f"| {head} | {column} | {old} | {_short(cells[column])} |")
    return lines


def main() -> None:
    """Print the table, or the cells as JSON with ``--json`` for the other process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="CHECKOUT", help="checkout of an earlier commit")
    parser.add_argument("--only", default="", metavar="TEXT", help="part of the title of a case")
    parser.add_argument("--output", metavar="FILE", help="file for the table")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(run_all(args.only)))
        return
    before = {}
    if args.before:
        code = [sys.executable, "-m", "benchmarks.odd_files", "--json", "--only", args.only]
        paths = f"{Path(args.before).resolve()}"
        # The package e3va comes from the other checkout, this program from this one.
        script = f"import sys; sys.path.insert(0, {paths!r}); sys.argv = {code[2:]!r}; "
        script += "import e3va, runpy; sys.path.insert(0, '.'); "
        script += "runpy.run_module('benchmarks.odd_files', run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE, check=True
        )
        before = json.loads(done.stdout.splitlines()[-1])
    lines = table(before, run_all(args.only))
    print("\n".join(lines))
    if args.output:
        Path(args.output).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
