"""Adapter files: read whole or refused, without the trunk; with it, the model to the bit."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file as load_tensors

from e3va import E3VABackbone, SwinTrunk, UserError
from e3va.adapter_files.description import AdapterConfig, describe_model
from e3va.adapter_files.files import (
    CONFIG_FILE,
    FULL_KEY,
    MODEL_FILE,
    is_adapter,
    load_adapter,
    merge,
    read_config,
    recorded_origin,
    save_adapter,
    split,
)
from e3va.weights.origin import TrunkOrigin, fingerprint, origin_of

from .conftest import CLASSES, Segmenter, trained


def test_an_adapter_holds_all_but_the_trunk_and_its_description(saved, pretrained):
    model, folder = saved
    state = load_tensors(folder / MODEL_FILE)
    expected = {k: v for k, v in model.state_dict().items() if ".trunk." not in k}
    assert state.keys() == expected.keys() and "norm.num_batches_tracked" in state
    assert all(torch.equal(state[k], expected[k]) for k in state)
    description = json.loads((folder / CONFIG_FILE).read_text())
    assert description["format_version"] == 2 and description["classes"] == [*CLASSES]
    assert description["trunk"]["fingerprint"] == fingerprint(pretrained)
    assert description["backbone"]["preset"] == "swin_nano"
    assert description["backbone"]["highway"] == {
        **{"recipe": "e3va_chain", "adapter": "conv", "form": "chain", "taps": "block"},
        **{"downsample": "offset", "shared": False, "train_trunk": False},
        **{"rank": 6, "kernel": 5},
    }
    config = read_config(folder)
    assert (config.steps, config.scores, config.trained_on) == (
        120,
        {"mIoU": 61.5},
        "8 photographs",
    )
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_FILE, MODEL_FILE]
    modes = {(folder / name).stat().st_mode for name in (CONFIG_FILE, MODEL_FILE)}
    assert len(modes) == 1  # others may read the tensors if they may read the description
    assert all(is_adapter(p) for p in (folder, folder / MODEL_FILE, folder / CONFIG_FILE))
    assert not is_adapter(folder.parent) and not is_adapter(folder / "model.pth")


@pytest.mark.parametrize("which", [".", MODEL_FILE, CONFIG_FILE])
def test_loading_gives_the_trained_model_back(saved, pretrained, which):
    model, folder = saved
    other = Segmenter()
    other.backbone.bottom_up.trunk.load_state_dict(pretrained)
    load_adapter(other, folder / which)
    images = torch.rand(2, 3, 50, 33)
    assert torch.equal(other.eval()(images), model(images))


def test_another_trunk_is_refused_with_both_fingerprints(saved):
    _, folder = saved
    other = Segmenter()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UserError, match="any_trunk=True") as caught:
        load_adapter(other, folder)
    expected = read_config(folder).trunk.short
    assert expected in caught.value.line
    assert origin_of(other.backbone.bottom_up.trunk).short in caught.value.line
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    load_adapter(other, folder, any_trunk=True)
    assert not torch.equal(other.head.weight, before["head.weight"])


def test_the_backbone_part_fits_another_task(saved, pretrained):
    model, folder = saved
    bare = E3VABackbone("swin_nano")
    bare.trunk.load_state_dict(pretrained)
    other = Segmenter(classes=5)
    other.backbone.bottom_up.trunk.load_state_dict(pretrained)
    with pytest.raises(UserError, match=r"2 of another .*head.bias: \[2\].*\[5\]"):
        load_adapter(other, folder)
    head = other.head.weight.clone()
    for module, target in ((bare, bare), (other, other.backbone.bottom_up)):
        load_adapter(module, folder, backbone_only=True)
        ours, theirs = target.highway.state_dict(), model.backbone.bottom_up.highway.state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert torch.equal(other.head.weight, head)


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        ({"highway": {"rank": 3}}, ["rank 6, not 3"]),
        (
            {"highway": "e3va"},
            ["recipe e3va_chain, not e3va", "rank 6, not 16", "taps block, not sublayer"],
        ),
        ({"preset": "swin_mini"}, ["preset swin_nano, not swin_mini", "rank 6, not 18"]),
        ({"out_features": ["p0", "p1"]}, ["out_features p0, p1, p2, p3, not p0, p1"]),
        ({"highway": {"downsample": "direct"}}, ["downsample offset, not direct"]),
    ],
)
def test_other_settings_are_named(saved, options, differ):
    with pytest.raises(UserError) as caught:
        load_adapter(Segmenter(**options), saved[1], any_trunk=True)
    assert all(text in caught.value.line for text in differ)


def test_a_model_with_a_trained_trunk_cannot_be_saved_as_an_adapter(pretrained, tmp_path):
    with pytest.raises(UserError, match="full"):
        save_adapter(trained(pretrained, highway="full"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("memory", ["plain", "standard", "lean"])
@pytest.mark.parametrize("mixed", [False, True])
def test_whole_to_adapter_and_back_is_exact(pretrained, memory, mixed):
    """Also where training has rounded the trunk to half precision or 8 bits."""
    model = trained(pretrained, memory=memory)
    model.backbone.bottom_up.prepare(mixed)
    whole = model.state_dict()
    config = describe_model(model, classes=CLASSES)
    checkpoint = {"model": whole, FULL_KEY: json.loads(json.dumps(config.to_dict()))}
    adapter, description = split(checkpoint, whole, "model.pth")
    assert description.to_dict() == config.to_dict()
    assert recorded_origin(checkpoint) == config.trunk
    back = merge(adapter, description, pretrained, "swin.pth")
    assert back.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype, name
    with pytest.raises(UserError, match=config.trunk.short):
        merge(
            adapter,
            description,
            {**pretrained, "patch_embed.proj.bias": torch.ones(16)},
            "swin.pth",
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"highway": {"rank": 5, "kernel": 3}},
        {"highway": {"recipe": "e3va", "reduction": 2}},
        {"highway": "frozen"},
        {"out_features": ["p1", "p2"], "preset": "swin_mini"},
    ],
)
def test_a_checkpoint_without_description_is_read_off_its_tensors(options):
    model = Segmenter(**options)
    whole = model.state_dict()
    adapter, config = split({"model": whole}, whole, "model.pth")
    assert adapter.keys() == {k for k in whole if ".trunk." not in k}
    expected = model.backbone.bottom_up.config
    assert replace(config.backbone, preset=expected.preset) == expected
    config.check_backbone(model.backbone.bottom_up, "model.pth")
    assert config.trunk.fingerprint == fingerprint(model.backbone.bottom_up.trunk.state_dict())
    with pytest.raises(UserError, match="swin.pth"):
        split({}, SwinTrunk("swin_nano").state_dict(), "swin.pth")


def damage_truncate(folder):
    path = folder / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-100])


def damage_one_bit(folder):
    data = bytearray((folder / MODEL_FILE).read_bytes())
    data[-7] ^= 1
    (folder / MODEL_FILE).write_bytes(data)


def damage_renamed(folder):
    (folder / MODEL_FILE).write_bytes(b"PK\x03\x04 a zip archive, renamed")


def damage_config(folder):
    description = json.loads((folder / CONFIG_FILE).read_text())
    description["trunk"]["fingerprint"] = "0" * 64
    (folder / CONFIG_FILE).write_text(json.dumps(description))


def damage_half_config(folder):
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text()[:200])


def damage_no_config(folder):
    (folder / CONFIG_FILE).unlink()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (damage_truncate, "cannot be read as safetensors"),
        (damage_one_bit, "was altered after it was written"),
        (damage_renamed, "cannot be read as safetensors"),
        (damage_config, "trunk: the two files"),
        (damage_half_config, "is not a JSON object"),
        (damage_no_config, "no adapter_config.json in"),
    ],
)
def test_a_damaged_adapter_is_refused(saved, damage, match):
    model, folder = saved
    damage(folder)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=match) as caught:
        load_adapter(model, folder)
    assert str(folder) in caught.value.line
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def hostile(data):
    """Wrong values for each entry of a description."""
    wrong = [None, -1, 0, 10**12, "x" * 50, [], {}, [10**9] * 4, float("inf"), True]
    places = [(key,) for key in data]
    places += [(key, inner) for key in ("backbone", "trunk") for inner in data[key]]
    for part in ("geometry", "highway"):
        places += [("backbone", part, inner) for inner in data["backbone"][part]]
    return st.tuples(st.sampled_from(places), st.sampled_from(wrong))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_hostile_description_is_refused_or_harmless(data):
    with torch.device("meta"):
        model = E3VABackbone("swin_nano")
    model.trunk.origin = TrunkOrigin("swin.pth", "0f" * 32)
    description = json.loads(json.dumps(describe_model(model, classes=CLASSES).to_dict()))
    place, value = data.draw(hostile(description))
    node = description
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    try:
        config = AdapterConfig.from_dict(description, "file")
    except UserError as error:
        assert error.line.startswith("file") and "\n" not in str(error)
        return
    own = config.backbone
    assert 0 < own.highway.options["rank"] <= 1024 and 0 < own.preset.embed_dim <= 1024
    assert json.dumps(config.to_dict())
