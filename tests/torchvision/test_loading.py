"""A model loaded from an adapter equals the whole model to the bit, or gives one line."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from e3va import UserError, get_preset
from e3va.adapter_files.files import CONFIG_FILE, FULL_KEY, MODEL_FILE, read_adapter, write_adapter
from e3va.adapter_files.heads import to_framework
from e3va.torchvision import ModelConfig, build_model, load_adapters, load_model, load_pretrained
from e3va.torchvision.data import Dataset
from e3va.torchvision.trainer import Trainer, TrainSettings
from e3va.weights.origin import fingerprint

from ..conftest import write_trunk

KEPT = {  # stored form of a trunk: (settings of the model, whether training is mixed)
    "fp32": ({}, False),
    "bf16": ({"trunk_precision": "bf16"}, False),
    "fp16": ({"trunk_precision": "fp16"}, True),
    "int8 bf16": ({"memory": "lean", "trunk_precision": "bf16"}, True),
    "int8 fp32": ({"memory": "lean"}, False),
}


def run(model, kind="mask_rcnn"):
    images = [torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        found = model(images)[0]
    assert kind == "semantic_fpn" or len(found["boxes"]) > 3
    return found


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "kind, stored",
    [
        ("mask_rcnn", "fp32"),
        ("cascade_mask_rcnn", "int8 bf16"),
        *(("semantic_fpn", stored) for stored in KEPT),
    ],
)
def test_an_adapter_with_its_trunk_equals_the_whole_model(kind, stored, make_trained, tmp_path):
    changes, mixed = KEPT[stored]
    config, model = make_trained(kind, "fruit", mixed, **changes)
    folder = tmp_path / "fruit"
    text = json.loads((folder / CONFIG_FILE).read_text())
    assert text["trunk"]["stored"] == stored and text["trunk"]["source"] == "swin.pth"
    assert text["classes"] == [*config.classes] and text["trained_on"] == "x: 4 images"
    assert (text["framework"], text["steps"]) == ("torchvision", 7)
    assert text["scores"] == {"AP mask": 12.5}  # JSON has no NaN
    assert str(tmp_path) not in (folder / CONFIG_FILE).read_text()
    whole, _ = load_model(folder / "model.pth")
    expected = run(whole, kind)
    assert same(expected, run(load_model(folder / "training.pth")[0], kind))
    for path in (folder, folder / MODEL_FILE, folder / CONFIG_FILE):
        loaded, again = load_model(path)  # the trunk lies above the adapter
        assert (again.model, again.classes, again.preset) == (kind, config.classes, config.preset)
        assert again.trunk == "swin.pth" and not loaded.training
        assert same(loaded.state_dict(), whole.state_dict())
    assert same(run(loaded, kind), expected)
    origins = [m.backbone.bottom_up.trunk.origin for m in (model, loaded, whole)]
    assert origins[0] == origins[1] == origins[2] and origins[0].stored == stored


def test_a_trunk_is_found_near_the_adapter_or_given(
    make_trained, pretrained, tmp_path, monkeypatch
):
    make_trained("semantic_fpn", "fruit")
    folder, elsewhere = tmp_path / "fruit", tmp_path / "elsewhere"
    elsewhere.mkdir()
    expected = load_model(folder)[0].state_dict()
    moved = shutil.move(pretrained, elsewhere / "renamed.pth")
    with pytest.raises(UserError, match=r"swin.pth \(fingerprint .* --trunk FILE") as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and str(tmp_path) in str(caught.value)
    assert same(load_model(folder, trunk=str(moved))[0].state_dict(), expected)
    shutil.move(moved, elsewhere / "swin.pth")
    monkeypatch.chdir(elsewhere)
    assert same(load_model(folder)[0].state_dict(), expected)
    with pytest.raises(UserError, match="model.pth is a whole model .* --trunk is for adapters"):
        load_model(folder / "model.pth", trunk="swin.pth")


def test_the_demonstration_trunk_needs_no_file(tmp_path):
    config = ModelConfig("semantic_fpn", ("a", "b"), get_preset("swin_mini"), "demo", size=64)
    model = build_model(config)
    load_pretrained(model, "demo")
    dataset = Dataset([], config.classes, read_target=dict, summary="none")
    Trainer(model, config, TrainSettings(), dataset, tmp_path / "out").save_model()
    loaded, again = load_model(tmp_path / "out")
    assert again.trunk == "demo" and same(loaded.state_dict(), model.state_dict())


def test_another_trunk_is_refused_with_both_fingerprints(make_trained, pretrained, tmp_path):
    make_trained("semantic_fpn", "fruit")
    other = write_trunk(tmp_path / "other.pth", seed=6)
    digests = [torch.load(p)["model"] for p in (pretrained, other)]
    with pytest.raises(UserError, match="--any-trunk") as caught:
        load_model(tmp_path / "fruit", trunk=str(other))
    for state in digests:
        assert fingerprint(state)[:16] in str(caught.value)
    model, _ = load_model(tmp_path / "fruit", trunk=str(other), any_trunk=True)
    assert torch.equal(
        model.backbone.bottom_up.trunk.patch_embed.proj.bias, digests[1]["patch_embed.proj.bias"]
    )
    assert model.backbone.bottom_up.trunk.origin.fingerprint == fingerprint(digests[1])
    larger = write_trunk(tmp_path / "larger.pth", 7, "swin_mini")
    with pytest.raises(UserError, match="swin_mini.*swin_nano"):
        load_model(tmp_path / "fruit", trunk=str(larger), any_trunk=True)


@pytest.mark.parametrize(
    "breaking, message",
    [
        (lambda f: os.truncate(f / MODEL_FILE, 5000), "cannot be read as safetensors"),
        (lambda f: (f / CONFIG_FILE).unlink(), "no adapter_config.json in"),
        (lambda f: (f / MODEL_FILE).unlink(), "no adapter_model.safetensors in"),
        (
            lambda f: shutil.copy(f.parent / "leaves" / CONFIG_FILE, f),
            "classes, model, weights",
        ),
        (lambda f: alter_tensors(f / MODEL_FILE), "was altered after it was written"),
        (lambda f: (f / CONFIG_FILE).write_text("{"), "is not a JSON object"),
    ],
    ids=["truncated", "no config", "no tensors", "another training's", "altered", "half a config"],
)
def test_a_broken_adapter_gives_one_line(breaking, message, make_trained, tmp_path):
    make_trained("semantic_fpn", "fruit")
    make_trained("semantic_fpn", "leaves", classes=("green", "brown"))
    breaking(tmp_path / "fruit")
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path / "fruit")
    assert "\n" not in str(caught.value)
    load_model(tmp_path / "leaves")


def alter_tensors(path: Path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    state = load_tensors(path)
    state["sem_seg_head.predictor.bias"][0] += 1e-6
    save_file(state, path, metadata)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": "large"}, "size 'large'"),
        ({"size": 10**9}, "size 1000000000"),
        ({"jitter": [0.5]}, "jitter .0.5,"),
        ({"category_ids": ["x"]}, "category_ids .'x'"),
        ({"model": ["mask_rcnn"]}, "model .'mask_rcnn'"),
        ({"model": "yolo"}, "model 'yolo': expected one of"),
        ({"heads": "standard"}, "does not fit this model"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_hostile_description_gives_one_line(changes, message, make_trained, tmp_path):
    """The author of both files can put anything into the description."""
    make_trained("semantic_fpn", "fruit")
    state, about = read_adapter(tmp_path / "fruit")
    about.model.update(changes)
    write_adapter(state, about, tmp_path / "fruit")
    with pytest.raises(UserError, match=message) as caught:
        load_model(tmp_path / "fruit")
    assert "\n" not in str(caught.value)


def as_detectron2(folder: Path, drop: str | None = None) -> Path:
    """Rewrite an adapter as if Detectron2 had written it."""
    state, about = read_adapter(folder)
    state, left = to_framework(state, "detectron2")
    assert not left
    if drop:
        state = {name.replace(drop, "surprise"): value for name, value in state.items()}
    model = {"config": "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"}
    write_adapter(state, replace(about, framework="detectron2", model=model), folder)
    return folder


@pytest.mark.parametrize("kind", ["mask_rcnn", "cascade_mask_rcnn", "semantic_fpn"])
def test_an_adapter_of_detectron2_is_recognized_by_its_tensors(kind, make_trained, tmp_path):
    names = ("red", "blue", "green")
    sizes = {"size": 800, "max_size": 1333, "pooling": "aligned"}
    make_trained(kind, "fruit", classes=names, category_ids=(), **sizes)
    whole, _ = load_model(tmp_path / "fruit")
    loaded, config = load_model(as_detectron2(tmp_path / "fruit"))
    assert (config.model, config.classes, config.heads) == (kind, names, "light")
    assert (config.highway.options["rank"], config.size, config.max_size) == (4, 800, 1333)
    assert config.category_ids == (() if kind == "semantic_fpn" else (1, 2, 3))
    images = [torch.rand(3, 40, 60)]
    with torch.no_grad():
        assert same(whole(images)[0], loaded(images)[0])


def test_heads_that_this_framework_lacks_give_one_line(make_trained, tmp_path):
    make_trained("mask_rcnn", "fruit")
    folder = as_detectron2(tmp_path / "fruit", drop="proposal_generator")
    with pytest.raises(UserError, match="e3va train --adapter"):
        load_model(folder)


def test_checkpoints_of_another_framework_say_what_to_do(make_trained, tmp_path):
    make_trained("semantic_fpn", "fruit")
    data = torch.load(tmp_path / "fruit" / "model.pth")
    torch.save({k: data[k] for k in ("model", FULL_KEY)}, tmp_path / "final.pth")
    with pytest.raises(UserError, match="final.pth .*e3va convert"):
        load_model(tmp_path / "final.pth")


def storages(*tensors):
    """Return the bytes of the distinct storages behind some tensors."""
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(found.values())


# The other roundings: test_an_adapter_with_its_trunk_equals_the_whole_model.
@pytest.mark.slow
@pytest.mark.parametrize("stored", ["fp32", "int8 bf16"])
def test_several_adapters_share_a_trunk_and_switch_to_the_bit(stored, make_trained, tmp_path):
    changes, mixed = KEPT[stored]
    make_trained("mask_rcnn", "a", mixed, **changes)
    make_trained("semantic_fpn", "bb", mixed, **changes, classes=("x", "y", "z"))
    make_trained("mask_rcnn", "ccc", mixed, **changes, highway={"recipe": "e3va", "rank": 8})
    paths = {name: tmp_path / name for name in ("a", "bb", "ccc")}
    as_detectron2(paths["a"])
    alone = {name: load_model(path)[0] for name, path in paths.items()}
    models = load_adapters(paths)
    assert models.names == ["a", "bb", "ccc"] and models.active == "a"
    for name in ("ccc", "a", "bb", "a", "ccc"):
        kind = "semantic_fpn" if name == "bb" else "mask_rcnn"
        assert same(run(models.set_adapter(name), kind), run(alone[name], kind)), name
        assert models.config.classes == (("x", "y", "z") if name == "bb" else ("red", "blue"))
    built = [models.set_adapter(name) for name in paths]
    everything = [t for model in built for t in (*model.parameters(), *model.buffers())]
    trunks = [model.backbone.bottom_up.trunk for model in built]
    assert trunks[0] is trunks[1] is trunks[2] is models.trunk
    of_trunk = storages(*models.trunk.parameters(), *models.trunk.buffers())
    names = (".bottom_up.trunk.",)
    own = [
        storages(*(p for n, p in m.named_parameters() if names[0] not in f".{n}"))
        + storages(*(p for n, p in m.named_buffers() if names[0] not in f".{n}"))
        for m in built
    ]
    assert storages(*everything) == of_trunk + sum(own)
    if stored == "int8 bf16":
        assert of_trunk < storages(*alone["a"].backbone.bottom_up.trunk.parameters()) / 3


def test_adapters_with_different_roundings_share_a_trunk_without_rounding(
    make_trained, pretrained, tmp_path
):
    for name, stored in (("a", "fp32"), ("bb", "int8 bf16"), ("ccc", "bf16")):
        changes, mixed = KEPT[stored]
        make_trained("mask_rcnn", name, mixed, **changes)
    make_trained("mask_rcnn", "dddd", memory="plain")
    paths = {name: tmp_path / name for name in ("a", "bb", "ccc", "dddd")}
    models = load_adapters(paths)
    state = torch.load(pretrained)["model"]
    assert same(models.trunk.state_dict(), state) and models.trunk.origin.stored == "fp32"
    for name in ("bb", "dddd", "a", "dddd"):
        if name in ("a", "dddd"):  # theirs was not rounded either
            assert same(run(models.set_adapter(name)), run(load_model(paths[name])[0])), name
        else:
            alone, _ = load_model(paths[name])
            images = torch.rand(1, 3, 64, 64)
            with torch.no_grad():
                ours = models.set_adapter(name).backbone(images)["p2"]
                theirs = alone.backbone(images)["p2"]
            assert not torch.equal(ours, theirs)
            assert (ours - theirs).norm() < 0.1 * theirs.norm()


def test_an_adapter_of_another_trunk_is_refused_and_the_loaded_ones_stay(
    make_trained, pretrained, tmp_path
):
    make_trained("semantic_fpn", "a")
    write_trunk(pretrained, seed=6)
    make_trained("semantic_fpn", "bb")
    with pytest.raises(UserError, match="was trained on the trunk"):
        load_adapters({"a": tmp_path / "a", "bb": tmp_path / "bb"})
    models = load_adapters({"bb": tmp_path / "bb"})
    expected = run(models.model, "semantic_fpn")
    with pytest.raises(UserError, match="was trained on the trunk"):
        models.load_adapter("a", tmp_path / "a")
    assert models.names == ["bb"] and same(run(models, "semantic_fpn"), expected)
    with pytest.raises(UserError, match="no adapter is given"):
        load_adapters({})
