"""``e3va export`` and ``e3va predict`` of its files, and one line for each mistake."""

import json
import sys

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from e3va.cli.main import main
from e3va.torchvision.exported import KEY
from e3va.utils import optional


@pytest.fixture
def fails(capsys):
    """Return a function that runs the command, which must fail with one line with some values."""

    def run(arguments, *values):
        assert main([str(a) for a in arguments]) == 1, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert all(value in error for value in values), error

    return run


def write_onnx(path, **metadata):
    """Write an ONNX file that only passes its input on."""
    shape = ["n", 3]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "other", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_files_that_are_no_exported_model(fails, drawn, tmp_path):
    def predict(path, *more):
        return ["predict", path, "--input", drawn.images, "--output", tmp_path / "out", *more]

    other = write_onnx(tmp_path / "other.onnx")
    fails(predict(other), "other.onnx", "another program")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    fails(predict(broken), "broken.onnx", "onnxruntime")
    fails(predict(tmp_path / "none.onnx"), "none.onnx", "does not exist")
    fails(predict(other, "--trunk", "demo"), "--trunk")
    fails(predict(other, "--device", "cuda"), "--device cuda")
    fails(["predict", other, other, "--input", drawn.images], "other.onnx", "one model at a time")
    description = {"version": 1, "content": "model", "config": {}}
    for text, value in (
        ("no JSON", "cannot be read"),
        (json.dumps([]), "cannot be read"),
        (json.dumps(description), "model description"),
        (json.dumps({**description, "config": None}), "model description"),
        (json.dumps({**description, "version": 99}), "99"),
        (json.dumps({**description, "content": "backbone"}), "only a backbone"),
    ):
        fails(predict(write_onnx(tmp_path / "altered.onnx", **{KEY: text})), "altered.onnx", value)
    assert not (tmp_path / "out").exists()


def test_mistakes_of_the_export(fails, make_trained, tmp_path, monkeypatch):
    make_trained("semantic_fpn", "roads")
    model = tmp_path / "roads" / "model.pth"
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    output = tmp_path / "model.onnx"
    fails(["export", tmp_path / "empty", "--output", output], "empty")
    fails(["export", model, "--output", tmp_path / "model.txt"], "model.txt", ".onnx", ".pt2")
    fails(["export", model, "--output", tmp_path / "file" / "model.onnx"], "file")
    output.write_text("old")
    fails(["export", model, "--output", output], "model.onnx", "--force")

    def unsupported(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("no ONNX function for aten.odd")

    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.onnx, "export", unsupported)
    fails(["export", model, "--output", output, "--force"], "aten.odd", "opset")
    assert output.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir() if "model" in path.name} == {"model.onnx"}


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(package, fails, drawn, tmp_path, monkeypatch):
    other = write_onnx(tmp_path / "other.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnxruntime":
        arguments = ["predict", other, "--input", drawn.images]
    else:
        arguments = ["export", "model.pth", "--output", tmp_path / "model.onnx"]
    fails(arguments, package, optional.HOW_TO_INSTALL[package])


@pytest.mark.slow
def test_predict_with_an_exported_model_needs_no_other_file(make_trained, drawn, tmp_path, capsys):
    config, _ = make_trained("faster_rcnn", "things", highway="frozen")
    folder, exported = tmp_path / "things", tmp_path / "things.onnx"
    words = ["--input", str(drawn.images), "--threshold", "0.3"]
    assert main(["predict", str(folder), *words, "--output", str(tmp_path / "torch")]) == 0
    assert main(["export", str(folder), "--output", str(exported)]) == 0
    assert "boxes, scores, labels" in capsys.readouterr().out
    folder.rename(tmp_path / "elsewhere")
    assert main(["predict", str(exported), *words, "--output", str(tmp_path / "onnx")]) == 0
    expected, found = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("torch", "onnx")
    )
    assert found["images"] == expected["images"]
    assert found["categories"] == expected["categories"]
    assert len(found["annotations"]) == len(expected["annotations"]) > 0
    for one, other in zip(found["annotations"], expected["annotations"], strict=True):
        assert one["category_id"] == other["category_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
