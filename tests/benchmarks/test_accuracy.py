"""The accuracy benchmark: methods train what they say, tasks do not overlap, figures are right."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def accuracy():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("candidates", "methods", "report", "runs", "schedule", "tasks")
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
    "lora": lambda name: "lora_" in name and (".qkv." in name or ".fc1." in name),
    "bottleneck": lambda name: ".down." in name or ".up." in name,
    "e3va_chain": lambda name: False,
    "offset": lambda name: False,
    "e3va": lambda name: False,
}


def test_every_method_trains_what_it_says(accuracy):
    pytest.importorskip("peft")
    assert set(accuracy.methods.METHODS) == set(WANTED)
    for method, wanted in WANTED.items():
        model = bottom_up(accuracy, method)
        backbone = model.backbone.bottom_up
        names = {name for name, _ in backbone.trunk.named_parameters()}
        assert trained(backbone.trunk) == {name for name in names if wanted(name)}, method
        assert all(p.requires_grad for p in backbone.highway.parameters())
        if method in ("lora", "bottleneck", "norms", "biases", "e3va_chain", "offset", "e3va"):
            parameters = list(backbone.parameters())
            share = sum(p.numel() for p in parameters if p.requires_grad)
            assert 0 < share <= 0.0155 * sum(p.numel() for p in parameters), method


def test_every_method_starts_from_the_same_model(accuracy):
    pytest.importorskip("peft")
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


def test_tables_against_hand_computed_figures(accuracy):
    def row(scores, kept, seconds):
        return {
            **{"scores": scores, "rate": 2.0, "steps": 10, "share_of_backbone": 0.01},
            **{"kept_for_backward_bytes": kept, "seconds_a_step": seconds},
            "search": {"0.5": 10.0, "2": 20.0},
        }

    results = {
        "things": {"full": row([10.0, 20.0], 100, 2.0), "e3va_chain": row([20.0, 22.0], 30, 1.0)},
        "land": {"full": row([50.0, 40.0], 100, 1.0), "e3va_chain": row([30.0, 34.0], 50, 0.8)},
    }
    report = accuracy.report
    assert report.overall(results) == {"full": [30.0, 30.0], "e3va_chain": [25.0, 28.0]}
    full, e3va = report.summary_table(results).splitlines()[2:]
    assert "| 15.0 ± 7.1 | 45.0 ± 7.1 | 30.0 ± 0.0 | 1.00% | 100.0% | 1.00 | 1.00 |" in full
    assert "| 21.0 ± 1.4 | 32.0 ± 2.8 | 26.5 ± 2.1 | 1.00% | 88.3% | 0.40 | 0.65 |" in e3va
    assert "| 10.0 | **20.0** |" in report.search_table(results)


def test_targets_against_hand_computed_figures(accuracy):
    scores = {
        **{"full": [40.0, 42.0], "e3va_chain": [40.0, 41.0], "lora": [40.5, 40.5]},
        **{"bottleneck": [39.0, 39.0], "frozen": [30.0, 33.0]},
    }
    lines = accuracy.report.targets({"land": {m: {"scores": s} for m, s in scores.items()}})
    full, lora, bottleneck, frozen = lines.splitlines()
    assert full == "- at least 98% of full fine-tuning: met (98.8%)"
    assert "missed (+0.0)" in lora and "met (+1.5)" in bottleneck
    assert "met (+9.0, 6.4 deviations" in frozen


def small(accuracy, monkeypatch, output, *options):
    """Run the command on few pictures, few steps, two methods."""
    monkeypatch.setattr(accuracy.tasks, "THINGS_SPLITS", {"train": 1, "val": 1, "test": 1})
    monkeypatch.setattr(accuracy.tasks, "LAND_SPLITS", {"train": 4, "val": 1, "test": 1})
    monkeypatch.setattr(accuracy.schedule, "STEPS", {"land": 2, "things": 2})
    arguments = ["--output", str(output), "--tasks", "land", "--rates", "1", "4", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["accuracy", *arguments, "--jobs", "1", *options])
    return accuracy.schedule.main("A benchmark.")


@pytest.mark.slow
def test_a_small_comparison_and_its_second_call(accuracy, monkeypatch, tmp_path, capfd):
    output = tmp_path / "out"
    methods = ("--methods", "full", "e3va_chain")
    assert small(accuracy, monkeypatch, output, *methods) == 0
    runs = sorted(path.name for path in (output / "runs").iterdir())
    assert len(runs) == 2 * (2 + 1)  # two rates with one seed, the better with another
    results = json.loads((output / "results.json").read_text())["tasks"]["land"]
    for method in ("full", "e3va_chain"):
        found = results[method]
        best = max(found["search"].values())
        assert found["search"][f"{found['rate']:g}"] == best
        assert len(found["scores"]) == 2 and all(0 <= s <= 100 for s in found["scores"])
    tested = {p.parent.name for p in (output / "runs").rglob("test.json")}
    assert len(tested) == 4  # what was not chosen never saw the test data
    for name in ("results.md", "scores.png", "curves.png", "pairs.png"):
        assert (output / name).stat().st_size > 0
    stamps = {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*.*")}
    assert small(accuracy, monkeypatch, output, *methods) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (output / "runs").rglob("*.*")}
    capfd.readouterr()
    assert small(accuracy, monkeypatch, output, "--large") == 1
    assert "--large" in capfd.readouterr().err


def test_mistakes_are_one_line(accuracy, monkeypatch, tmp_path, capfd):
    for options, said in (
        (["--tasks", "streets"], "the task 'streets' needs --streets"),
        (["--photos", str(tmp_path)], "expected a folder that holds the folder 'train'"),
        (["--trunk", str(tmp_path / "no.pth")], "no.pth"),
        (["--device", "abacus"], "abacus"),
    ):
        assert small(accuracy, monkeypatch, tmp_path / "out", *options) == 1
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    for option in (["--seeds", "0"], ["--rates", "-1"], ["--jobs", "0"]):
        with pytest.raises(SystemExit, match="2"):
            small(accuracy, monkeypatch, tmp_path / "out", *option)
