"""The GPU benchmark: every part runs in small on the CPU; searches, reports and limits of time."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("capacity", "part", "report", "schedule")
    yield Namespace(**{name: importlib.import_module(f"gpu.{name}") for name in names})
    sys.path.remove(str(BENCHMARKS))


def test_every_part_runs_in_small(gpu, tmp_path, capfd):
    arguments = ["--device", "cpu", "--short", "--seconds", "400", "--output", str(tmp_path)]
    status = gpu.schedule.main("doc", arguments)
    said = capfd.readouterr()
    report = json.loads((tmp_path / "gpu.json").read_text())
    tables = report["tables"]
    assert [row for row in tables["checks"] if not row["passed"]] == []
    assert status == 0, said.err
    assert {*report["parts"]} == {*gpu.schedule.PARTS}
    assert all(end.startswith("done") for end in report["parts"].values())
    # Waits are counted and kernels run on CUDA only.
    assert {*gpu.report.TEXTS} - {*tables} <= {"waits", "recipes"}
    assert {row["what"] for row in tables["checks"]} >= {
        "backbone, e3va_chain, lean, bf16: gradients",
        "resumed training beside an uninterrupted one",
        "parameters without a gradient in a group (gloo)",
    }
    forms = {form for row in tables["forward"] for form in row["seconds"]}
    assert forms >= {"fast", "plain", "plain, compiled", "fast, compiled"}
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"steps_swin_nano_batch_1.png", "forward.png", "capacity.png"}
    text = (tmp_path / "gpu.md").read_text()
    assert "the figures mean nothing" in text and "0 failed" in text


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_largest_that_fits_is_found(gpu, limit, count):
    choices = range(10, 10 + count)
    expected = max((c for c in choices if c <= limit), default=None)
    assert gpu.capacity.largest(choices, lambda c: c <= limit) == expected


ABOUT = {
    **{"device": "a card", "threads": 1, "cores": 1, "versions": {}, "commit": "c"},
    **{"short": False, "memory_gib": 11.0},
}


def test_hours_and_ratios_of_the_report(gpu, tmp_path):
    rows = [
        {
            "table": "recipes",
            **{"config": "one.py", "iterations": 90_000, "images": 16, "batch": 2},
            "seconds": {"full": 0.5, "e3va_chain": 0.25},
        },
        {
            **{"table": "forward", "preset": "swin_l", "precision": "bf16"},
            "seconds": {"fast": 0.1, "timm": 0.15, "detectron2": 0.13},
        },
    ]
    assert gpu.report.write(tmp_path, ABOUT, {"recipes": "done in 3 s"}, rows) is False
    text = (tmp_path / "gpu.md").read_text()
    assert "| one.py | full | 0.500 | 100.0 | 12.5 |" in text  # 90,000 · 16 / 2 · 0.5 s
    assert "| one.py | e3va_chain | 0.250 | 50.0 | 6.2 |" in text
    assert "| swin_l | bf16 | 0.1000 | 0.1500 | 0.1300 | 1.30 |" in text


def test_a_failed_check_and_a_part_that_did_not_end_are_failures(gpu, tmp_path):
    row = {"table": "checks", "what": "one: outputs", "found": 0.5, "limit": 0.1, "passed": False}
    assert gpu.report.write(tmp_path, ABOUT, {"correctness": "done in 3 s"}, [row])
    assert "| one: outputs | 0.5 | 0.1 |" in (tmp_path / "gpu.md").read_text()
    assert gpu.report.write(tmp_path, ABOUT, {"correctness": "stopped after 90 s"}, [])
    assert not gpu.report.write(tmp_path, ABOUT, {"correctness": "done in 3 s"}, [])


def test_an_error_fails_its_check_and_the_next_one_runs(gpu, tmp_path):
    import torch

    part = gpu.part.Part(torch.device("cpu"), True, tmp_path / "rows.jsonl", 0.0)
    with part.attempt("one"):
        raise RuntimeError("no kernel")
    part.check("two", float("nan"), 1.0)
    part.check("three", 1.0, 1.0)
    rows = gpu.schedule.read_rows(part.results)
    assert [row["passed"] for row in rows] == [False, False, True]
    assert "no kernel" in rows[0]["error"] and "test_gpu.py" in rows[0]["error"]


def test_rows_that_were_cut_off_are_left_out(gpu, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"table": "checks"}\n{"table": "che')
    assert gpu.schedule.read_rows(tmp_path / "rows.jsonl") == [{"table": "checks"}]


def test_a_part_that_takes_too_long_is_stopped_and_the_report_says_so(
    gpu, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(gpu.schedule, "GRACE", 0)
    arguments = ["--device", "cpu", "--short", "--seconds", "1", "--parts", "correctness"]
    assert gpu.schedule.main("doc", [*arguments, "--output", str(tmp_path)]) == 1
    assert "stopped after 1 s" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["--device", "cpu"], ["--device cpu", "--short"]),
        (["--device", "nonsense"], ["--device nonsense"]),
        (["--device", "cuda:99", "--short"], ["--device cuda:99"]),
    ],
)
def test_mistakes_are_one_line(gpu, arguments, values, capsys, tmp_path):
    assert gpu.schedule.main("doc", [*arguments, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(value in error for value in values)
    assert not (tmp_path / "out").exists()
