"""Exported models compute what the models compute, at any size, in PyTorch and in onnxruntime."""

import json
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch

from e3va import SwinPreset, UserError
from e3va.torchvision import ModelConfig, build_model
from e3va.torchvision.export import (
    ExportableBackbone,
    ExportableModel,
    describe,
    to_program,
    write_program,
)
from e3va.torchvision.exported import KEY, load_onnx
from e3va.torchvision.models import MODELS
from e3va.torchvision.transform import unpasted_masks

# An export takes seconds for each block, so only the backbones have shifted windows and adapters.
SMALL = SwinPreset(8, (1, 1, 1, 1), (1, 2, 2, 2), window=4, pretrain_size=64)
SHIFTED = replace(SMALL, depths=(1, 2, 1, 1))
SIZES = [(64, 64), (70, 101), (33, 160)]  # they are resized to 64 × 64, 64 × 92 and 19 × 96


def make_model(kind, preset=SMALL, highway="frozen"):
    """Return (config, model) with weights that find objects whose scores all differ."""
    ids = () if kind == "semantic_fpn" else (5, 9)
    config = ModelConfig(
        *(kind, ("red", "blue"), preset, "random", highway),
        **{"heads": "light", "size": 64, "max_size": 96, "category_ids": ids},
    )
    model = build_model(config)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    if kind == "fcos":  # its bias expects one object in a hundred places
        torch.nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    return config, model.eval().requires_grad_(False)


def images(sizes=SIZES):
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) for size in sizes]


def assert_same(found, expected):
    """Compare two outputs for one image: boxes in pixels, all else as probabilities."""
    if "boxes" not in expected:
        assert (found["labels"] != expected["labels"]).float().mean() < 1e-3
        assert found["labels"].shape == expected["labels"].shape
        assert len(expected["labels"].unique()) > 1
        return
    assert found.keys() == expected.keys() and len(expected["boxes"]) > 2
    assert torch.equal(found["labels"], expected["labels"])
    for name in expected.keys() - {"labels"}:
        limit = 1e-4 * (160 if name == "boxes" else 1)  # of the longest side
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=limit)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "semantic_fpn"])
def test_the_exported_heads_equal_those_of_the_models(kind):
    config, model = make_model(kind)
    exported = ExportableModel(model)
    for image in images():
        resized, _ = model.transform.resize(model.transform.normalize(image))
        found = exported(resized[None])
        size = tuple(image.shape[-2:])
        with unpasted_masks():
            expected = model([image])[0]
            (found,) = model.transform.postprocess([found], [tuple(resized.shape[-2:])], [size])
        assert_same(found, expected)


@pytest.mark.slow
# Each takes half a minute; a mask_rcnn has all of a faster_rcnn.
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "faster_rcnn"])
def test_onnxruntime_equals_pytorch(kind, tmp_path):
    config, model = make_model(kind)
    exported = ExportableModel(model)
    path = tmp_path / "deep" / "model.onnx"
    program = to_program(exported)
    write_program(program, exported.outputs, describe(config, "fp32"), path)
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx"}
    loaded, own_config = load_onnx(path)
    assert own_config == config
    with unpasted_masks():
        for found, image in zip(loaded(images()), images(), strict=True):
            assert_same(found, model([image])[0])
    if kind == "mask_rcnn":  # an image without any box
        (nothing,) = loaded([torch.full((3, 64, 64), torch.nan)])
        assert nothing["masks"].shape == (0, 1, 64, 64) and nothing["boxes"].shape == (0, 4)
    if kind == "semantic_fpn":
        batch = torch.randn(3, 3, 40, 75)
        (logits,) = loaded.session.run(None, {"images": batch.numpy()})
        expected = torch.stack([exported(image[None])["logits"][0] for image in batch])
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(torch.from_numpy(logits), expected, **close)
        write_program(program, exported.outputs, {"version": 1}, tmp_path / "model.pt2")
        described = {f"{KEY}.json": ""}
        program = torch.export.load(tmp_path / "model.pt2", extra_files=described)
        assert json.loads(described[f"{KEY}.json"]) == {"version": 1}
        torch.testing.assert_close(program.module()(batch)["logits"], expected, **close)


@pytest.mark.slow
@pytest.mark.parametrize("weights, rounding", [("int8", 0.02), ("fp16", 1e-3)])
def test_a_backbone_with_rounded_weights_in_onnxruntime(weights, rounding, tmp_path):
    config, model = make_model("semantic_fpn", SHIFTED, "e3va_chain")
    backbone = model.backbone.bottom_up
    exported = ExportableBackbone(backbone, weights)
    path = tmp_path / "backbone.onnx"
    description = describe(config, weights, backbone_only=True)
    write_program(to_program(exported), exported.outputs, description, path, opset=20)
    stored = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    kind = onnx.TensorProto.INT8 if weights == "int8" else onnx.TensorProto.FLOAT16
    assert kind in stored
    session = onnxruntime.InferenceSession(path)
    for shape in ((1, 3, 97, 131), (3, 3, 64, 96), (1, 3, 5, 200)):
        batch = torch.randn(shape)
        values = session.run(None, {"images": batch.numpy()})
        rounded, whole = exported(batch), backbone(batch)
        for level, value in zip(exported.outputs, values, strict=True):
            value = torch.from_numpy(value)
            torch.testing.assert_close(value, rounded[level], rtol=1e-4, atol=1e-4)
            assert (value - whole[level]).abs().max() < rounding * whole[level].abs().max()
    assert json.loads(session.get_modelmeta().custom_metadata_map[KEY])["weights"] == weights
    with pytest.raises(UserError, match="only a backbone"):
        load_onnx(path)
