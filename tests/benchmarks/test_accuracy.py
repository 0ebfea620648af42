"""The accuracy benchmark: methods train what they say, tasks do not overlap, figures are right."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e3va import E3VABackbone, UserError, adapter_kinds
from e3va.swin.presets import get_preset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def accuracy():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = (
        *("candidates", "comparisons", "methods", "paired", "pairs", "pictures", "plots", "report"),
        *("runs", "schedule", "tables", "tasks"),
    )
    yield Namespace(**{name: importlib.import_module(f"accuracy.{name}") for name in names})
    sys.path.remove(str(BENCHMARKS))


def bottom_up(accuracy, method, seed=0):
    run = accuracy.runs.Run("land", method, rate=1.0, seed=seed, steps=10)
    return accuracy.runs.build(run, ("a", "b", "c"))[0]


def trained(module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


WANTED = {
    "full": lambda name: True,
    "frozen": lambda name: False,
    "norms": lambda name: "norm" in name.rsplit(".", 2)[-2],
    "biases": lambda name: name.endswith(".bias"),
    "last stage": lambda name: name.startswith("layers.3."),
    "lora": lambda name: False,
    "bottleneck": lambda name: False,
    "e3va_chain": lambda name: False,
    "e3va_wide": lambda name: False,
    "offset": lambda name: False,
    "e3va": lambda name: False,
}


def test_every_method_trains_what_it_says(accuracy):
    assert set(accuracy.methods.METHODS) == set(WANTED)
    for method, wanted in WANTED.items():
        model = bottom_up(accuracy, method)
        backbone = model.backbone.bottom_up
        names = {name for name, _ in backbone.trunk.named_parameters()}
        assert trained(backbone.trunk) == {name for name in names if wanted(name)}, method
        assert all(p.requires_grad for p in backbone.highway.parameters())
        small = method in ("norms", "biases", "e3va_chain")
        if small or accuracy.methods.METHODS[method].share:
            assert 0 < share(backbone) <= 0.015, method
        assert method != "e3va_wide" or 0.04 < share(backbone) <= 0.05


def share(backbone) -> float:
    parameters = list(backbone.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return trained / sum(p.numel() for p in parameters)


def ranked_backbone(method, rank, preset):
    """A backbone with adapters of some rank, built without the benchmark's search."""
    with torch.device("meta"):
        return E3VABackbone(preset, method.ranked(rank))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["swin_mini", "swin_t"])
def test_ranks_are_the_largest_within_the_share(accuracy, preset):
    preset, methods = get_preset(preset), accuracy.methods
    front = {name: method for row in methods.FRONT.values() for name, method in row.items()}
    ranked = {n: m for n, m in {**methods.METHODS, **front}.items() if m.ranked}
    assert {"lora", "bottleneck", "e3va_chain 5.0%", "lora 5.0%", "e3va"} < set(ranked)
    for name, method in ranked.items():
        rank = method.rank(preset)
        assert share(ranked_backbone(method, rank, preset)) <= method.share, name
        assert share(ranked_backbone(method, rank + 1, preset)) > method.share, name
        assert method.fitted(preset).highway["rank"] == rank
    assert all(m.fitted(preset) is m for m in methods.METHODS.values() if not m.ranked)


def test_the_adapters_of_a_pair_train_about_the_same_share(accuracy):
    preset, pairs = get_preset("swin_mini"), accuracy.pairs.PAIRS
    assert {name.split()[0] for name in pairs} == {*adapter_kinds()} - {"wide_conv"}
    for name, method in pairs.items():
        fitted = method.fitted(preset)
        kind, placement = name.split()
        assert (fitted.highway["adapter"], fitted.highway["placement"]) == (kind, placement)
        with torch.device("meta"):
            found = share(E3VABackbone(preset, fitted.highway))
        assert 0.0085 < found <= 0.015 or method.ranked is None, name
        assert method.rank(preset) == fitted.highway.get("rank")
    assert "mona inside" in pairs and "ladder inside" not in pairs
    model = bottom_up(accuracy, "mona inside")
    assert model.backbone.bottom_up.highway.config.inside


def test_candidates_train_the_share_of_their_titles(accuracy):
    for name, method in accuracy.candidates.CANDIDATES.items():
        found = f"{share(bottom_up(accuracy, name).backbone.bottom_up):.2%}"
        assert method.title.endswith(f": {found}") and float(found[:-1]) <= 1.5


def test_every_method_starts_from_the_same_model(accuracy):
    images = torch.rand(2, 3, 60, 90)
    heads, outputs = None, None
    for method in (*accuracy.methods.METHODS, *accuracy.candidates.CANDIDATES):
        model = bottom_up(accuracy, method).eval()
        state = {k: v for k, v in model.state_dict().items() if ".bottom_up." not in k}
        with torch.no_grad():
            found = model.backbone.bottom_up(images)
        if heads is None:
            heads, outputs = state, found
        assert all(torch.equal(state[k], heads[k]) for k in heads)
        if method == "e3va":  # the literal form is no identity at the start
            continue
        for name, value in found.items():
            torch.testing.assert_close(value, outputs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_learning_rate_at_which_the_loss_diverges_is_not_chosen(accuracy, tmp_path):
    sources = accuracy.tasks.Sources(tmp_path / "drawn")
    accuracy.tasks.draw(sources.drawn)
    first = accuracy.runs.Run("land", "full", rate=0.5, seed=0, steps=4)
    found = [first, replace(first, rate=1e20)]
    with accuracy.schedule.Schedule(tmp_path, sources, "cpu", 1) as schedule:
        schedule.do(accuracy.runs.train, "summary.json", found, "search")
        best = accuracy.comparisons.best_rates({("land", "full"): found[::-1]}, schedule.score)
        assert best == {("label maps", "full"): 0.5}
        assert accuracy.runs.validation(found[1], schedule.folder(found[1]))[-1] == (4, 0.0)


def test_equal_seeds_give_equal_models_and_others_do_not(accuracy):
    one, same, other = (bottom_up(accuracy, "e3va_chain", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    key = "backbone.bottom_up.highway.stages.0.mlp.0.down.weight"
    assert not torch.equal(one[key], other[key])


def write_streets(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 4), ("test", 5)):
        for name in (split, f"{split}annot"):
            (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (24, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{i}.png")
            labels = rng.integers(0, 12, (24, 36), dtype=np.uint8)
            Image.fromarray(labels).save(folder / f"{split}annot" / f"{i}.png")
    return folder


def test_streets_ignore_what_has_no_class(accuracy, tmp_path):
    tasks = accuracy.tasks
    sources = tasks.Sources(tmp_path / "drawn", streets=write_streets(tmp_path / "streets"))
    assert list(tasks.available(sources)) == ["things", "land", "streets"]
    data = tasks.TASKS["streets"].load(sources, "test")
    assert len(data.classes) == 11 and len(data.records) == 2  # every third of five
    for record in data.records:
        raw = np.array(Image.open(record["labels"]))
        labels = data.read_target(record)["labels"].numpy()
        assert (labels[raw == 11] == 255).all() and (raw == 11).any()
        assert np.array_equal(labels[raw != 11], raw[raw != 11])


def row(scores, kept=1, seconds=1.0, steps=10):
    return {
        **{"title": "a title", "rank": 3, "scores": scores, "rate": 2.0, "steps": steps},
        **{"share_of_backbone": 0.01, "kept_for_backward_bytes": kept},
        **{"seconds_a_step": seconds, "seconds": seconds * steps},
    }


def test_tables_against_hand_computed_figures(accuracy):
    results = {
        "things": {"full": row([10.0, 20.0], 100, 2.0), "e3va_chain": row([20.0, 22.0], 30, 1.0)},
        "land": {"full": row([50.0, 40.0], 100, 1.0), "e3va_chain": row([30.0, 34.0], 50, 0.8, 20)},
    }
    tables = accuracy.tables
    full = tables.full_means(results)
    assert full == {"things": 15.0, "land": 45.0}
    shares = tables.of_full(results, full)
    # Seed 0 of E³VA: (20/15 + 30/45) / 2 = 1; seed 1: (22/15 + 34/45) / 2 = 10/9.
    assert shares["e3va_chain"] == pytest.approx([100, 1000 / 9])
    e3va, full = tables.summary_table(results, more_steps=True).splitlines()[2:]
    assert "| 15.0 ± 7.1 | 45.0 ± 7.1 | 100.0 ± " in full and "| 1.00 | 1.00 | 1.00 |" in full
    assert e3va.startswith("| a title, rank 3 | 21.0 ± 1.4 | 32.0 ± 2.8 | 105.6 ± 7.9 | 1.00% |")
    assert e3va.endswith("| 1.50 | 0.40 | 1.05 |")  # steps, kept, time (0.5 and 1.6)
    plain = {task: {"e3va_chain": found["e3va_chain"]} for task, found in results.items()}
    assert "| 26.5 ± 2.1 | 1.00% |" in tables.summary_table(plain)
    search = {"land": {"0.5": 10.0, "2": 20.0}}
    rates = {"full": {"rates": {"label maps": 2.0}, "search": search}}
    assert tables.rates_table(rates, {"full": "F"}).endswith("| F | land | 10.0 | **20.0** |")


def test_flatness_against_hand_computed_figures(accuracy):
    def curves(*ends):
        points = [[(25, 1.0), (50, 9.0), (75, a), (100, b)] for a, b in ends]
        return {"full": {"steps": 100, "curves": points}}

    found = accuracy.tables.flatness(
        {
            "level": curves((50.0, 50.5), (50.0, 50.5)),  # gains 0.5 = 1%
            "rising": curves((40.0, 50.0), (40.0, 51.0)),  # gains 10.5, deviation 0.7
            "noisy": curves((38.0, 40.0), (46.0, 50.0)),  # gains 3, deviation 7.1
            "one": curves((40.0, 50.0)),
        }
    )
    assert {task: one["flat"] for task, one in found.items()} == {
        **{"level": True, "rising": False, "noisy": True, "one": False}
    }
    assert found["rising"]["gain"] == 10.5 and found["one"]["deviation"] is None


def test_signed_ranks_against_a_hand_computed_example(accuracy):
    # Ranks of the absolute values: 1, 2, 3, 4, 5; only the second is negative, so W- = 2. Of the
    # 32 choices of signs, W- is at most 2 for 3 (none, {1}, {2}), so p = 2 * 3 / 32.
    p, ranks = accuracy.paired.signed_rank([1.0, -2.0, 3.0, 4.0, 5.0])
    assert p == pytest.approx(6 / 32) and ranks == 1 - 2 + 3 + 4 + 5
    assert accuracy.paired.signed_rank([0.0, 0.0]) == (1.0, 0.0)


def test_holm_against_a_hand_computed_example(accuracy):
    # Sorted: 0.005 * 4 = 0.02; 0.01 * 3 = 0.03; 0.03 * 2 = 0.06; 0.04 * 1 is below the one before.
    assert accuracy.paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert accuracy.paired.holm([0.9, 0.8]) == [1.0, 1.0]


def test_paired_differences_against_a_hand_computed_example(accuracy):
    scores = {
        "things": {"e3va_chain": [12.0, 11.0], "full": [10.0, 10.0]},  # +20%, +10%
        "land": {"e3va_chain": [44.0, 58.0], "full": [40.0, 60.0]},  # +8%, -4%
        "nuts": {"e3va_chain": [81.0, 84.0], "full": [80.0, 80.0]},  # +1.25%, +5%
    }
    full = {"things": 10.0, "land": 50.0, "nuts": 80.0}
    found = accuracy.paired.compare("steps", scores, full, "e3va_chain", "full")
    means = [15.0, 2.0, 3.125]
    assert found.mean == pytest.approx(sum(means) / 3)
    # Student's t at 0.975 with two degrees of freedom is 4.3027.
    half = 4.3027 * np.std(means, ddof=1) / 3**0.5
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), 1e-4)
    assert (found.tasks_ahead, found.tasks) == (3, 3)
    # |differences| in order: 1.25, 4 (negative), 5, 8, 10, 20: W- = 2, p = 2 * 3 / 64.
    assert found.p == pytest.approx(6 / 64) and found.ranks == 17


def test_a_method_is_ahead_only_when_the_corrected_test_says_so(accuracy):
    def verdict(mean, ranks, p):
        return accuracy.paired.Difference(
            "steps", "a", "b", mean, None, None, 1, 1, p=p / 12, ranks=ranks, p_holm=p
        ).verdict

    assert verdict(1.0, 9.0, 0.04) == "ahead" and verdict(-1.0, -9.0, 0.04) == "behind"
    assert verdict(1.0, 9.0, 0.06) == "not significant"
    assert verdict(1.0, -9.0, 0.04) == "not significant"  # the mean has the other direction


def test_steps_at_equal_seconds(accuracy):
    steps = accuracy.comparisons.equal_seconds_steps
    assert steps(300, full=0.8, own=0.8) == 300
    assert steps(300, full=0.8, own=0.5) == 480
    assert steps(300, full=0.5, own=0.7) == 214
    assert steps(300, full=0.8, own=0.1) == 1200  # not 2400
    assert set(accuracy.tasks.TASKS) <= set(accuracy.comparisons.STEPS)


def test_a_method_has_one_rate_for_all_tasks_of_a_kind(accuracy):
    scores = {("things", 1.0): 40.0, ("things", 4.0): 50.0, ("nuts", 1.0): 10.0, ("nuts", 4.0): 5.0}
    scores |= {("land", 1.0): 10.0, ("land", 4.0): 20.0}
    run = accuracy.runs.Run("land", "full", 1.0, 0, 10)
    grid = {
        (task, "full"): [replace(run, task=task, rate=rate) for rate in (1.0, 4.0)]
        for task in ("things", "nuts", "land")
    }
    best = accuracy.comparisons.best_rates(grid, lambda run: scores[run.task, run.rate])
    # Relative to the tasks' best scores: 0.8 + 1 with rate 1, and 1 + 0.5 with rate 4.
    assert best == {("boxes and masks", "full"): 1.0, ("label maps", "full"): 4.0}
    del grid["nuts", "full"]
    best = accuracy.comparisons.best_rates(grid, lambda run: scores[run.task, run.rate])
    assert best == {("boxes and masks", "full"): 4.0, ("label maps", "full"): 4.0}


def test_a_rate_is_tried_beyond_the_best_one_at_an_end(accuracy):
    widened, run = accuracy.comparisons.widened, accuracy.runs.Run("land", "full", 0.4, 0, 10)
    key = ("land", "full")

    def rates_with_best(best, *rates):
        row = [replace(run, rate=rate) for rate in rates]
        grid = widened({key: row}, {("label maps", "full"): best})
        return [one.rate for one in grid[key]]

    assert rates_with_best(0.4, 0.4, 1.6, 6.4) == pytest.approx([0.4, 1.6, 6.4, 0.1])
    assert rates_with_best(6.4, 0.4, 1.6, 6.4) == pytest.approx([0.4, 1.6, 6.4, 25.6])
    assert rates_with_best(1.6, 0.4, 1.6, 6.4) == [0.4, 1.6, 6.4]
    assert rates_with_best(1.0, 1.0) == [1.0]  # frozen
    many = [4.0**n for n in range(accuracy.comparisons.MOST_RATES)]
    assert rates_with_best(many[-1], *many) == many


def test_the_search_is_on_some_tasks_and_the_comparison_on_all(accuracy):
    tasks = ["nuts", "land", "cells"]
    common = {"times": 1, "trunk": "", "precision": "fp32", "rates": None, "rates_of": None}
    args = Namespace(tasks=tasks, methods=["lora", "frozen"], seeds=2, **common)
    grid = accuracy.comparisons.search(args)
    assert list(grid) == [(t, m) for t in ("land", "cells") for m in ("lora", "frozen")]
    assert [len(row) for row in grid.values()] == [3, 1, 3, 1]
    kinds = accuracy.tasks.TASKS["land"].kind, accuracy.tasks.TASKS["nuts"].kind
    rates = {(kinds[0], "lora"): 6.4, (kinds[1], "lora"): 1.6}
    plan = accuracy.comparisons.at_equal_steps(args, rates | {(k, "frozen"): 1.0 for k in kinds})
    assert list(plan) == [(t, m) for t in tasks for m in ("lora", "frozen")]
    assert {(run.rate, run.seed) for run in plan["nuts", "lora"]} == {(1.6, 0), (1.6, 1)}
    assert {(run.rate, run.seed) for run in plan["land", "lora"]} == {(6.4, 0), (6.4, 1)}
    for tasks, searched in ((["nuts"], {"nuts"}), (["nuts", "land"], {"nuts", "land"})):
        args.tasks = tasks
        assert {task for task, _ in accuracy.comparisons.search(args)} == searched


def test_rates_of_an_earlier_call(accuracy, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"rates": {"full": {"rates": {"label maps": 0.1}}}}))
    common = {"times": 1, "trunk": "", "precision": "fp32", "rates": None, "rates_of": file}
    args = Namespace(tasks=["land"], methods=["full"], **common)
    grid = accuracy.comparisons.search(args)
    assert [run.rate for run in grid["land", "full"]] == [0.1]
    for change, value in (
        ({"methods": ["full", "lora"]}, "lora"),
        ({"tasks": ["cells"]}, "boxes and masks"),
        ({"rates": [1.0]}, "--rates "),
        ({"rates_of": tmp_path / "none.json"}, "none.json"),
        ({"rates_of": Path(__file__)}, "test_accuracy.py"),
    ):
        with pytest.raises(UserError, match=value):
            accuracy.comparisons.search(Namespace(**{**vars(args), **change}))
    for rate in (-1.0, 0.0, float("nan"), float("inf")):
        file.write_text(json.dumps({"rates": {"full": {"rates": {"label maps": rate}}}}))
        with pytest.raises(UserError, match=f"full on label maps is {rate}"):
            accuracy.comparisons.search(args)


def small(accuracy, monkeypatch, output, *options):
    """Run the command on few pictures, with few steps."""
    monkeypatch.setattr(accuracy.tasks, "THINGS_SPLITS", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(accuracy.tasks, "LAND_SPLITS", {"train": 4, "val": 1, "test": 1})
    monkeypatch.setattr(accuracy.comparisons, "STEPS", {"land": 4, "things": 4})
    arguments = ["--output", str(output), "--tasks", "land", "--rates", "1", "4", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments, "--jobs", "1", *options])
    return accuracy.schedule.main("A benchmark.")


@pytest.mark.slow
def test_a_small_comparison_and_its_second_call(accuracy, monkeypatch, tmp_path, capfd):
    output, front = tmp_path / "out", {"e3va_chain": ("e3va_chain 0.6%",), "lora": ()}
    every = accuracy.methods.FRONT["e3va_chain"]
    monkeypatch.setitem(
        accuracy.methods.FRONT, "e3va_chain", {k: every[k] for k in front["e3va_chain"]}
    )
    options = ("--methods", "full", "e3va_chain", "--front-seeds", "1")
    assert small(accuracy, monkeypatch, output, *options) == 0
    found = json.loads((output / "results.json").read_text())
    steps, seconds, ranks = (
        found["comparisons"][name]["land"] for name in accuracy.comparisons.COMPARISONS
    )
    runs = {path.name for path in (output / "runs").iterdir()}
    ratio = steps["full"]["seconds_a_step"] / steps["e3va_chain"]["seconds_a_step"]
    assert seconds["e3va_chain"]["steps"] == max(1, min(16, round(4 * ratio)))
    assert seconds["full"] == steps["full"]
    longer = 2 * (seconds["e3va_chain"]["steps"] != 4)
    assert len(runs) == 2 * (2 + 1) + longer + 1  # two rates with one seed, the better with another
    assert set(ranks) == {"full", "e3va_chain", "e3va_chain 0.6%"}
    for method in ("full", "e3va_chain"):
        chosen = found["rates"][method]
        rate, scores = chosen["rates"]["label maps"], chosen["search"]["land"]
        assert scores[f"{rate:g}"] == max(scores.values())
        assert len(steps[method]["scores"]) == 2 and len(ranks[method]["scores"]) == 1
        assert all(0 <= score <= 100 for score in steps[method]["scores"])
        assert [step for step, _ in steps[method]["curves"][0]] == [1, 2, 3, 4]
    assert [(row["comparison"], row["method"], row["other"]) for row in found["paired"]] == [
        ("steps", "e3va_chain", "full"),
        ("seconds", "e3va_chain", "full"),
    ]
    tested = {p.parent.name for p in (output / "runs").rglob("test.json")}
    assert len(tested) == 4 + longer + 1  # what was not chosen never saw the test data
    assert len(list((output / "runs").rglob("model.pth"))) == 2  # those of the pictures
    for name in ("results.md", "scores.png", "curves.png", "front.png", "pairs.png"):
        assert (output / name).stat().st_size > 0
    stamps = {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*.*")}
    assert small(accuracy, monkeypatch, output, *options) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*.*")}
    # Another choice of the rate needs a model that was dropped: it is trained again.
    chosen = found["rates"]["full"]["rates"]["label maps"]
    other = "4" if chosen == 1 else "1"
    part = ("--methods", "full", "--rates", other, "--seeds", "1", "--comparisons", "steps")
    assert small(accuracy, monkeypatch, output, *part) == 0
    again = json.loads((output / "results.json").read_text())
    assert again["comparisons"]["steps"]["land"]["full"]["rate"] == float(other)
    capfd.readouterr()
    for changed, value in (("--times", "2"), ("--precision", "bf16")):
        assert small(accuracy, monkeypatch, output, changed, value) == 1
        assert changed in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("what", [["--methods", "full"], ["--candidates", "--methods", "chain"]])
def test_a_comparison_at_a_rate_that_diverges_is_refused(
    accuracy, monkeypatch, tmp_path, capfd, what
):
    options = (*what, "--rates", "1e20", "--seeds", "1", "--comparisons", "steps")
    assert small(accuracy, monkeypatch, tmp_path / "out", *options) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: land-") and "1e+20" in error and "--rates" in error


@pytest.mark.slow
def test_a_signal_ends_all_processes(tmp_path):
    psutil = pytest.importorskip("psutil")  # peft brings it
    command = [sys.executable, str(BENCHMARKS / "accuracy"), "--output", str(tmp_path / "out")]
    command += ["--tasks", "land", "--methods", "full", "--jobs", "1", "--seeds", "1"]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with open(tmp_path / "log.txt", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not list((tmp_path / "out").rglob("log.txt")):  # a training is on its way
                assert process.poll() is None
                time.sleep(0.2)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(number)
            process.wait(120)
        finally:
            process.kill()
        assert workers and not psutil.wait_procs(workers, timeout=120)[1]
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert "Traceback" not in (tmp_path / "log.txt").read_text()
        shutil.rmtree(tmp_path / "out" / "runs")


def test_mistakes_are_one_line(accuracy, monkeypatch, tmp_path, capfd):
    for options, said in (
        (["--tasks", "streets"], "the task 'streets' needs --streets"),
        (["--photos", str(tmp_path)], "expected a folder that holds the folder 'train'"),
        (["--trunk", str(tmp_path / "no.pth")], "no.pth"),
        (["--device", "abacus"], "abacus"),
        (["--methods", "lora", "--comparisons", "seconds"], "--comparisons seconds"),
    ):
        assert small(accuracy, monkeypatch, tmp_path / "out", *options) == 1
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    for option in (["--seeds", "0"], ["--rates", "-1"], ["--jobs", "0"]):
        with pytest.raises(SystemExit, match="2"):
            small(accuracy, monkeypatch, tmp_path / "out", *option)
