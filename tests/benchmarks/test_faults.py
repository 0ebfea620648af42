"""The campaign of bad luck loses nothing in a few tries, and notices what is lost."""

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from random import Random

import pytest

from e3va import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def faults():
    """The benchmark's modules by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = ("fuzz", "outcome", "runs", "schedule")
    yield Namespace(**{name: importlib.import_module(f"faults.{name}") for name in names})
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("kill", "twice", "data"), 0.03),
        (("disk", "fuzz", "endurance"), 0.005),
    ],
)
def test_nothing_is_lost_in_a_few_tries(names, scale, tmp_path):
    command = [sys.executable, BENCHMARKS / "faults", "--faults", *names]
    command += ["--scale", scale, "--output", tmp_path, "--frameworks", "torchvision"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    found = json.loads((tmp_path / "faults.json").read_text())["tries"]
    lost = [one for one in found if one["lost"]]
    # A tenth of a few tries is too short to judge memory.
    lost = [one for one in lost if "memory grows" not in one["lost"]]
    assert not lost and len(found) >= 4, done.stderr
    table = (tmp_path / "faults.md").read_text()
    assert f"| all | {len(found)} | " in table and "--seed 0" in table


def test_what_is_lost_is_in_the_table_and_in_the_status(faults, tmp_path, monkeypatch, capsys):
    one, two = faults.outcome.Outcome("one"), faults.outcome.Outcome("one", "a | file")
    other = faults.outcome.Outcome("other", "gone")
    found = {"twice": [one, two], "data": [other]}
    for name, outcomes in found.items():
        fault = Namespace(run=lambda campaign, outcomes=outcomes: iter(outcomes))
        monkeypatch.setitem(sys.modules, f"faults.{name}", fault)

    def call(*words):
        return faults.schedule.main("doc", ["--output", str(tmp_path), *words])

    def table():
        return (tmp_path / "faults.md").read_text()

    assert call("--faults", "data") == 1
    assert call("--faults", "twice") == 1
    assert "| one | 2 | 1 | a / file |" in table() and "| other | 1 | 1 | gone |" in table()
    assert "| all | 3 | 2 | |" in table()
    found["twice"].pop()
    assert call("--faults", "twice") == 0  # the other fault's losses stay in the table
    assert "| one | 1 | 0 |" in table() and "| all | 2 | 1 | |" in table()
    capsys.readouterr()
    assert call("--faults", "twice", "--seed", "5") == 1
    assert "another --seed" in capsys.readouterr().err
    assert call("--faults", "twice", "data", "--seed", "5") == 1
    (tmp_path / "faults.json").write_text("{}")
    assert call("--faults", "twice") == 1
    assert "not written by this benchmark" in capsys.readouterr().err


def test_errors_that_are_not_one_line_are_losses(faults):
    def raising(error):
        def read():
            raise error

        return faults.fuzz.refused(read)

    assert raising(UserError("one line")) == ""
    assert "KeyError" in raising(KeyError("x"))
    assert "1200 characters" in raising(UserError("x" * 1200))
    complaint = faults.runs.complaint
    assert complaint("step 3\nerror: no image\n") == ""
    assert complaint("Traceback (most recent call last):\nKeyError: 3").startswith("traceback")
    assert complaint("Killed") == "no line of error: 'Killed'"


SEEN = """
import os, pickle, sys
from pathlib import Path
from random import Random
sys.path.insert(0, sys.argv[1])
from faults import fuzz

def attempt(random, folder):
    pickle.loads(pickle.dumps(fuzz._Evil(os.mkdir, fuzz.CANARY)))
    return ""

fuzz._batch([1], attempt, Path("work").resolve(), Path("results").resolve())
"""


def test_code_in_a_file_would_be_seen(tmp_path):
    """A reader that unpickles leaves the canary."""
    command = [sys.executable, "-c", SEEN, str(BENCHMARKS)]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "results").read_text()) == "code in the file ran"


def test_mutations_follow_from_the_seed(faults):
    good = {"a": [1, {"b": 2}], "c": "d"}
    one, two, other = (faults.fuzz.mutate_json(Random(seed), good) for seed in (1, 1, 2))
    assert repr(one) == repr(two) and good == {"a": [1, {"b": 2}], "c": "d"}
    assert repr(one) != repr(other)
    data = bytes(range(200))
    assert faults.fuzz.mutate_bytes(Random(5), data) == faults.fuzz.mutate_bytes(Random(5), data)
    assert any(faults.fuzz.mutate_bytes(Random(n), data) != data for n in range(3))


@pytest.mark.parametrize("scale", ["0", "1.5", "-1"])
def test_a_wrong_scale_is_one_line(faults, scale, capsys, tmp_path):
    assert faults.schedule.main("doc", ["--scale", scale, "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--scale {scale}" in error
    assert not (tmp_path / "out").exists()
