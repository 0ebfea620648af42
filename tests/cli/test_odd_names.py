"""Files whose names are not UTF-8, and a terminal that prints only ASCII characters."""

import contextlib
import io
import json
import os

import pytest
from PIL import Image

from e3va.cli.main import main

BAD = os.fsdecode(b"caf\xe9")  # in Latin-1, as on old disks


@pytest.fixture
def odd(drawn, drawn_labels, tmp_path):
    """The drawn data, with such names in a folder of such a name."""
    for image in drawn.data["images"]:
        name = image["file_name"]
        (drawn_labels / name).rename(drawn_labels / f"{BAD}{name}")
        (drawn.images / name).rename(drawn.images / f"{BAD}{name}")
        image["file_name"] = f"{BAD}{name}"
    drawn.save()
    folder = tmp_path / BAD
    drawn.images.parent.rename(folder)
    return folder


def run(*arguments):
    """Run the command, check its status, and return what it prints in ASCII."""
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(output):
        assert main([str(a) for a in arguments]) == 0
    output.flush()
    return output.buffer.getvalue().decode("ascii")


def test_the_check_finds_no_problem(odd):
    images = ["--images", odd / "images", "--output", odd / "out"]
    classes = ["--classes", "nothing,béton,中"]
    for data in ([odd / "annotations.json"], [odd / "labels", *classes]):
        printed = run("check", *data, *images)
        found = json.loads((odd / "out" / "problems.json").read_text())
        assert found["problems"] == [] and found["images"] == 6
        assert Image.open(odd / "out" / "sheet.png").width == 1600
    assert "caf\\udce9" in printed and "b\\xe9ton" in printed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instances", "label maps"])
def test_training_scoring_and_predicting(odd, kind):
    source = ["--annotations", odd / "annotations.json"]
    if kind == "label maps":
        source = ["--labels", odd / "labels"]
    data = ["--images", odd / "images", *source]
    size = ["--trunk", "random", "--preset", "swin_nano", "--size", "48", "--steps", "1"]
    run("train", *data, "--output", odd / "out", *size)
    model = odd / "out" / "model.pth"
    assert "caf\\udce9" in run("eval", model, *data)
    run("predict", model, "--input", odd / "images", "--output", odd / "drawn")
    assert len(list((odd / "drawn").glob(f"{BAD}*.png"))) == 6
    if kind == "instances":
        found = json.loads((odd / "drawn" / "predictions.json").read_text())
        assert found["images"][0]["file_name"] == str(odd / "images" / f"{BAD}1.png")
    run("info", model)
