"""The smaller benchmarks run, and their figures are what they say."""

import importlib
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from e3va.model_zoo.publish import publish

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """Runs a benchmark's main() with arguments; returns its module and exit status."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *arguments: object):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return module, module.main()

    return run


def test_trunk_speed_times_every_trunk_in_every_round(script, tmp_path, capsys, monkeypatch):
    pytest.importorskip("timm")
    limits = importlib.import_module("cost.limits")
    for name, value in (("SIDE", {"cpu": 256}), ("TRIES", 1), ("COPIED", 2**20)):
        monkeypatch.setattr(limits, name, value)
    small = ("--presets", "swin_nano", "--size", 64, 96, "--rounds", 2, "--device", "cpu")
    module, status = script("trunk_speed", *small, "--precision", "fp32", "--output", tmp_path)
    assert status == 0
    found = json.loads((tmp_path / "trunk_speed.json").read_text())["rows"]
    assert [row["preset"] for row in found] == ["swin_nano"]
    assert all(len(times) == 2 and min(times) > 0 for times in found[0]["seconds"].values())
    assert {"fast", "plain", "timm"} <= set(found[0]["seconds"])
    assert module.row(found[0]) in capsys.readouterr().out


def test_ratios_are_medians_of_those_of_each_round(script):
    module = importlib.import_module("trunk_speed")
    found = {
        "preset": "swin_x",
        "precision": "fp32",
        "seconds": {"fast": [1.0, 2.0, 4.0], "plain": [3.0, 4.0, 4.0], "timm": [2.0, 4.0, 8.0]},
        "flops": 1e9,
        "limits": {"flops": 1e9},
    }
    line = module.row(found)
    assert "| 2.000 | 2.00 (1.00–3.00) | 2.00 (2.00–2.00) | – | 1.000 | 50% |" in line


def test_trunk_speed_refuses_what_it_does_not_know(script, capsys):
    _, status = script("trunk_speed", "--presets", "swin_x")
    assert status == 1
    assert capsys.readouterr().err.startswith("error: --presets swin_x: expected some of swin_t")


@pytest.fixture
def labelled(tmp_path):
    """Two small pictures with label maps."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        pixels = rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        labels = rng.integers(0, 2, (70, 90), dtype=np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{number}.png")
    return tmp_path


@pytest.mark.slow
def test_fidelity_measures_errors_and_losses_of_every_mode(script, labelled, capsys):
    data = ("--images", labelled / "images", "--labels", labelled / "labels", "--classes", "a,b")
    picture = ("--image", labelled / "images" / "0.png", "--side", 64)
    output = labelled / "out"
    module, status = script("fidelity", *picture, *data, "--steps", 2, "--output", output)
    assert status == 0, capsys.readouterr().err
    found = json.loads((output / "fidelity.json").read_text())
    assert set(found["errors"]) == set(found["losses"]) == set(module.MODES)
    errors = found["errors"]
    assert errors["plain, fp32"]["gradients"] < 1e-4
    assert 1e-4 < errors["standard, fp32"]["gradients"] < 0.01
    assert errors["standard, fp32"]["outputs"] < 1e-4  # the forward pass rounds nothing
    assert errors["standard, fp32"]["gradients"] < errors["lean, fp32"]["gradients"] < 0.1
    assert (output / "losses.png").stat().st_size > 1000


def test_fidelity_says_what_is_wrong_with_an_image(script, tmp_path, capsys):
    _, status = script("fidelity", "--image", tmp_path / "none.jpg", "--output", tmp_path)
    assert status == 1
    assert "none.jpg cannot be read" in capsys.readouterr().err


def test_operators_are_timed_side_by_side(script, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("operators")
    monkeypatch.setattr(module, "ROUNDS", 1)
    small = {"a product": next(iter(module.products(torch.float32, 8, 4).values()))}
    monkeypatch.setattr(module, "products", lambda dtype: small)
    monkeypatch.setattr(module, "attention", lambda: {})
    monkeypatch.setattr(module, "convolution", lambda: {})
    _, status = script("operators", "--output", tmp_path)
    assert status == 0
    assert "| a product |" in (tmp_path / "operators.md").read_text()


def test_both_operators_of_a_pair_compute_the_same(script):
    module = importlib.import_module("operators")
    pairs = {**module.products(torch.float32, 8, 4), **module.attention(4, 2, 3, 8)}
    for obvious, taken in pairs.values():
        one, other = obvious().float(), taken().float()
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


SMALL = ("--presets", "swin_nano", "--side", 256)


@pytest.mark.slow
def test_sources_finds_no_difference_but_rounding(script, tmp_path, capsys):
    for package in ("timm", "transformers"):
        pytest.importorskip(package)
    module, status = script("sources", *SMALL, "--output", tmp_path)
    assert status == 0
    text = (tmp_path / "sources.md").read_text()
    rows = dict(re.findall(r"^\| (.+) \| (\d\S+) \|$", text, re.MULTILINE))
    assert {"torchvision", "timm", "transformers", "mmdetection (layout)"} <= set(rows)
    assert set(rows) <= set(module.SOURCES)
    assert all(float(value) < 1e-5 for value in rows.values())
    assert text.splitlines()[0] in capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in text


def test_sources_sees_a_file_read_in_the_wrong_order(script, monkeypatch):
    module = importlib.import_module("sources")
    official = ("torch", module.mmdetection_swin, str)  # official names, the order of nn.Unfold
    monkeypatch.setitem(module.SOURCES, "mixed", official)
    assert module.largest_difference("mixed", module.PRESETS["swin_nano"], 256) > 0.01


@pytest.mark.parametrize(("preset", "side"), [("swin_x", 448), ("swin_t", 64), ("swin_t", 450)])
def test_sources_refuses_what_it_does_not_know(script, capsys, preset, side):
    _, status = script("sources", "--presets", preset, "--side", side)
    assert status == 1
    assert ": expected " in capsys.readouterr().err


@pytest.mark.slow
def test_zoo_faults_shows_what_a_user_sees(script, tmp_path, monkeypatch, capsys):
    module = importlib.import_module("zoo_faults")
    cases = {case: (case, faults, "cache") for case, faults, _ in module.CASES}
    few = ("a wrong file of the right size", "slow, and cut twice")
    monkeypatch.setattr(module, "CASES", [cases[case] for case in few])
    monkeypatch.setattr(module, "MISUSE", ())
    monkeypatch.setattr(module, "publish", publish_quietly)
    script("zoo_faults", "--output", tmp_path)
    text = (tmp_path / "zoo_faults.md").read_text()
    assert text.count("(exit 1)") == 2  # the wrong file, and the table that names one outside
    assert re.search(r"adapter_model.safetensors has sha256 \w{64} instead of \w{64}", text)
    assert all(f"adapter_model.safetensors: {sent} bytes" in text for sent in (30000, 60000))
    assert "Will attempt the download again 1 more time" in text
    assert "Traceback" not in text and tempfile.gettempdir() not in text
    assert "server: /zoo.json" in capsys.readouterr().out


def publish_quietly(user) -> None:
    """The adapter in a zoo, without the commands that show how it comes there."""
    importlib.import_module("zoo_faults").train(user.folder / "output")
    publish(user.folder / "output", "shapes", user.folder / "zoo")


@pytest.mark.slow
def test_a_hundred_masks_of_a_large_photo_are_never_in_memory_together(script, tmp_path, capsys):
    size = ("--width", 2000, "--height", 1500, "--cases", "torchvision eval")
    _, status = script("mask_memory", *size, "--output", tmp_path)
    assert status == 0
    row = capsys.readouterr().out.splitlines()[-1]
    case, count, peak, without, difference = (cell.strip() for cell in row.strip("|").split("|"))
    assert (case, count) == ("torchvision eval", "100")
    assert min(int(cell.replace(",", "")) for cell in (peak, without)) > 100
    # A hundred masks of 3 megapixels are 1144 MiB as float32 and 286 MiB as uint8.
    assert int(difference.replace(",", "")) < 150
    assert row in (tmp_path / "mask_memory.md").read_text()


def test_tasks_per_pass_compares_one_pass_with_others(script, tmp_path, capsys):
    small = ("--presets", "swin_nano", "--models", "semantic_fpn", "--size", "64")
    module, status = script(
        "tasks_per_pass", *small, "--counts", "1", "3", "--rounds", "2", "--output", tmp_path
    )
    assert status == 0
    (found,) = json.loads((tmp_path / "tasks_per_pass.json").read_text())["tables"]
    assert [row["tasks"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert [*row["seconds"]] == ["one pass", "K passes", "K networks"]
        assert all(len(seconds) == 2 for seconds in row["seconds"].values())
        assert row["bytes"]["one pass"] == row["bytes"]["K passes"]
    one, three = found["rows"]
    # Three networks have three trunks; three adapters have one.
    assert three["bytes"]["K networks"] == 3 * one["bytes"]["K networks"]
    assert three["bytes"]["one pass"] < three["bytes"]["K networks"]
    row = {"seconds": {"one pass": [1.0, 3.0, 2.0], "K passes": [4.0, 4.0, 4.0]}}
    assert module.ratio(row, "one pass", "K passes") == 0.5
    assert (tmp_path / "tasks_per_pass.png").is_file()
    _, status = script("tasks_per_pass", "--presets", "swin_x", "--output", tmp_path / "out")
    assert status == 1 and "'swin_x'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_service_is_compared_with_direct_calls(script, make_trained, drawn, tmp_path, capsys):
    pytest.importorskip("uvicorn")
    make_trained("semantic_fpn", "leaves")
    options = ("--images", drawn.images, "--requests", 20, "--clients", 3, "--rounds", 2)
    module, status = script("service", tmp_path / "leaves", *options, "--output", tmp_path / "out")
    assert status == 0
    found = json.loads((tmp_path / "out" / "service.json").read_text())
    many = found["several clients"]
    assert many["lost"] == [] and len(many["memory"]) == 20 and 0 < many["equal"] <= 20
    assert all(len(times) == 12 for times in found["one client"].values())  # 6 images, 2 rounds
    assert "request / direct call" in capsys.readouterr().out
    assert (tmp_path / "out" / "service.png").stat().st_size > 1000
    table = module.table(
        {"direct": [2.0, 1.0, 4.0], "request": [3.0, 2.5, 2.0]},
        {**many, "requests": 40, "seconds": 8.0, "memory": [2**21] * 15 + [3 * 2**20]},
    )
    assert "| request / direct call | 1.25 |" in table
    assert "| 40 | 3 | 0 |" in table and "| 5.0 | 2 | +50.0% |" in table


@pytest.mark.slow
def test_predict_speed_compares_with_torchvisions_loop(script, tmp_path, capsys):
    small = ("--presets", "swin_nano", "--images", 2, "--rounds", 1, "--size", 64)
    _, status = script("predict_speed", *small, "--output", tmp_path)
    assert status == 0
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows[:2]] == ["torchvision's loop", "e3va predict"]
    assert rows[0][3:] == [" 1.00 ", " 1.00–1.00 "] and all(float(row[2]) > 0 for row in rows)
    speeds = json.loads((tmp_path / "predict_speed.json").read_text())["speeds"]["swin_nano"]
    assert {len(own) for own in speeds.values()} == {1} and len(speeds) == len(rows)
