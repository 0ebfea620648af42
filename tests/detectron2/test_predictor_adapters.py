"""LazyPredictor with one adapter, built from its description, or several over one trunk."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from e3va import UserError
from e3va.adapter_files.files import CONFIG_FILE, read_adapter, save_adapter, write_adapter
from e3va.detectron2 import LazyPredictor, describe, load_config, visualize
from e3va.detectron2.checkpoint import HighwayCheckpointer
from e3va.utils.atomic import save_atomically
from e3va.weights.checkpoint import load_file

CONFIG = "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"
# Neither the preset nor the number of classes: an adapter describes both.
SMALL = [
    "dataloader.test.mapper.augmentations.0.short_edge_length=96",
    "model.backbone.out_channels=16",
    "model.proposal_generator.head.in_channels=16",
    "model.proposal_generator.post_nms_topk=[60,60]",
    "model.roi_heads.mask_head.input_shape.channels=16",
    "model.roi_heads.mask_head.conv_dims=[16,16]",
    "train.device=cpu",
]
SMALL += [
    f"model.roi_heads.{key}"
    for k in range(3)
    for key in (
        f"box_heads.{k}.input_shape.channels=16",
        f"box_heads.{k}.fc_dims=[32]",
        f"box_predictors.{k}.input_shape.channels=32",
        f"box_predictors.{k}.test_score_thresh=0.02",
    )
]
ADAPTERS = {"fruit": ("fig", "date"), "leaves": ("oak", "elm", "ash"), "one": ("nut",)}


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 90, (117, 155, 3), dtype=np.uint8)
    picture[20:70, 30:90] = (200, 120, 20)
    return picture


def make_adapter(folder, pretrained, classes, seed, *options, mixed=False):
    """An adapter as a training leaves it, of random tensors, and a checkpoint of the whole."""
    nano = ["model.backbone.bottom_up.preset=swin_nano", *options]
    cfg = load_config(CONFIG, [*SMALL, *nano])
    cfg.model.roi_heads.num_classes = len(classes)
    torch.manual_seed(seed)
    model = instantiate(cfg.model)
    HighwayCheckpointer(model).load(str(pretrained))
    for name, parameter in model.named_parameters():
        if ".up." in name or "bbox_pred" in name:
            nn.init.normal_(parameter, std=0.05)
    model.backbone.bottom_up.prepare(mixed)
    about = {**describe.describe_config(cfg), "classes": classes}
    save_adapter(model, folder, **about)
    save_atomically({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture
def folders(pretrained, tmp_path):
    return {
        name: make_adapter(tmp_path / name, pretrained, classes, seed)
        for seed, (name, classes) in enumerate(ADAPTERS.items())
    }


def same(one, other):
    a, b = one["instances"], other["instances"]
    assert len(a) > 5
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for x, y in (
            (a.pred_boxes.tensor, b.pred_boxes.tensor),
            (a.scores, b.scores),
            (a.pred_classes, b.pred_classes),
            (a.pred_masks, b.pred_masks),
        )
    )


@pytest.mark.parametrize("mixed", [False, True])
def test_an_adapter_predicts_as_the_whole_model(pretrained, tmp_path, image, mixed):
    """Config, preset, rank and classes come from its description; the trunk is found beside it."""
    rank = "model.backbone.bottom_up.highway.rank=5"
    folder = make_adapter(tmp_path / "fruit", pretrained, ("fig", "date"), 1, rank, mixed=mixed)
    alone = LazyPredictor(weights=folder, overrides=SMALL)
    assert alone.metadata.thing_classes == ["fig", "date"]
    assert alone.model.backbone.bottom_up.config.highway.options["rank"] == 5
    given = ["model.backbone.bottom_up.preset=swin_nano", "model.roi_heads.num_classes=2", rank]
    expected = LazyPredictor(CONFIG, folder / "model.pth", [*SMALL, *given])
    assert same(alone(image), expected(image))
    # With a config of another number of classes, the classes are the adapter's too.
    other = LazyPredictor(CONFIG, folder, [*SMALL, given[0], rank])
    assert same(other(image), expected(image)) and len(other.metadata.thing_classes) == 2


def test_only_configs_of_the_project_run(folders, tmp_path):
    state, description = read_adapter(folders["fruit"])
    trace = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nmodel = train = dict()\n")
    escapes = [str(tmp_path / "evil.py"), "../../../.." + str(tmp_path / "evil.py"), "evil.py"]
    for name in (*escapes, "common/train.py", "COCO", "", ".py", "a\0b.py", 7, None, ["x.py"]):
        renamed = replace(description, model={"config": name})
        write_adapter(state, renamed, tmp_path / "evil")
        with pytest.raises(UserError, match="config") as caught:
            LazyPredictor(weights=tmp_path / "evil")
        assert "\n" not in str(caught.value) and str(tmp_path / "evil") in caught.value.line
    assert not trace.exists()


def test_missing_configs_weights_and_trunks_are_one_line(folders, pretrained, tmp_path):
    with pytest.raises(UserError, match="model.pth .*config"):
        LazyPredictor(weights=folders["one"] / "model.pth")
    with pytest.raises(UserError, match="no weights"):
        LazyPredictor()
    with pytest.raises(UserError, match=r"swin_nano, not swin_t"):
        LazyPredictor(CONFIG, folders["one"], SMALL)
    entries = json.loads((folders["one"] / CONFIG_FILE).read_text())
    (folders["one"] / CONFIG_FILE).write_text(json.dumps({**entries, "classes": ["a", "b"]}))
    with pytest.raises(UserError, match="classes"):
        LazyPredictor(weights=folders["one"], overrides=SMALL)
    pretrained.rename(tmp_path / "moved.pth")
    with pytest.raises(UserError, match="trunk swin.pth"):
        LazyPredictor(weights=folders["fruit"], overrides=SMALL)
    LazyPredictor(weights=folders["fruit"], overrides=SMALL, trunk=tmp_path / "moved.pth")


def held_bytes(modules):
    """Bytes of the distinct storages of all parameters and buffers."""
    held = {}
    for module in modules:
        for value in (*module.parameters(), *module.buffers()):
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(held.values())


def test_all_adapters_predict_from_one_pass(folders, image):
    predictor = LazyPredictor(weights=folders["fruit"], overrides=SMALL)
    predictor.load_adapter("leaves", folders["leaves"])
    other_size = "dataloader.test.mapper.augmentations.0.short_edge_length=64"
    predictor.load_adapter("one", folders["one"], None, [other_size])
    passes = []
    predictor.trunk.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    found = predictor.predict_all(image)
    assert len(passes) == 2 and predictor.passes == [["default", "leaves"], ["one"]]
    assert predictor.active == "default"
    for name, own in found.items():
        predictor.set_adapter(name)
        assert same(own, predictor(image)), name
    with pytest.raises(UserError, match="uint8"):
        predictor.predict_all(image.astype(float))


def test_several_adapters_share_one_trunk_and_switch(folders, image):
    predictor = LazyPredictor(weights=folders["fruit"], overrides=SMALL)
    predictor.load_adapter("leaves", folders["leaves"])
    # A config of its own, and one file of the adapter.
    own = load_config(CONFIG, [*SMALL, "model.backbone.bottom_up.preset=swin_nano"])
    predictor.load_adapter("one", folders["one"] / CONFIG_FILE, own)
    assert predictor.names == ["default", "leaves", "one"] and predictor.active == "default"
    separate = {
        name: LazyPredictor(weights=folder, overrides=SMALL) for name, folder in folders.items()
    }
    separate["default"] = separate.pop("fruit")
    classes = {**ADAPTERS, "default": ADAPTERS["fruit"]}
    for name in ("leaves", "default", "one", "leaves", "default"):
        assert predictor.set_adapter(name) is predictor.model
        assert predictor.metadata.thing_classes == [*classes[name]]
        assert predictor.model.roi_heads.num_classes == len(classes[name])
        assert same(predictor(image), separate[name](image))
    together = [predictor.set_adapter(name) for name in predictor.names]
    addresses = {
        tuple(p.data_ptr() for p in model.backbone.bottom_up.trunk.parameters())
        for model in together
    }
    assert len(addresses) == 1
    alone = [p.model for p in separate.values()]
    trunk = held_bytes([alone[0].backbone.bottom_up.trunk])
    assert held_bytes(together) == held_bytes(alone) - 2 * trunk
    # Configs stay plain data.
    for name in predictor.names:
        predictor.set_adapter(name)
        cfg = predictor.cfg
        assert "trunk" not in cfg.model.backbone.bottom_up and LazyConfig.to_py(cfg)
    assert "trunk" not in own.model.backbone.bottom_up


def test_adapters_that_do_not_fit_change_nothing(folders, pretrained, tmp_path, image):
    predictor = LazyPredictor(weights=folders["fruit"], overrides=SMALL)
    expected = predictor(image)
    other = {k: v + 1 for k, v in load_file(pretrained)["model"].items()}
    save_atomically({"model": other}, tmp_path / "other.pth")
    stranger = make_adapter(tmp_path / "stranger", tmp_path / "other.pth", ("x", "y"), 9)
    with pytest.raises(UserError, match=r"other.pth .fingerprint \w+.*swin.pth .fingerprint \w+"):
        predictor.load_adapter("stranger", stranger)
    with pytest.raises(UserError, match="no adapter"):
        predictor.load_adapter("whole", folders["one"] / "model.pth")
    with pytest.raises(UserError, match="roi_heads.* does not|does not fit this model"):
        predictor.load_adapter(
            "leaves", folders["leaves"], overrides=["model.roi_heads.num_classes=8"]
        )
    with pytest.raises(UserError, match="no adapter 'leaves' is loaded: expected one of default"):
        predictor.set_adapter("leaves")
    assert predictor.names == ["default"] and same(predictor(image), expected)
    easy = LazyPredictor(weights=folders["fruit"], overrides=SMALL, any_trunk=True)
    easy.load_adapter("stranger", stranger)
    easy.set_adapter("stranger")
    assert easy.metadata.thing_classes == ["x", "y"]


def test_the_demo_draws_with_an_adapter(folders, pretrained, drawn, tmp_path, monkeypatch, capsys):
    command = ["demo.py", "--weights", folders["leaves"], "--output", tmp_path / "pictures"]
    command += ["--input", drawn.images / "1.png", "--opts", *SMALL]

    def run(*more):
        monkeypatch.setattr("sys.argv", [*map(str, (*command, *more))])
        with pytest.raises(SystemExit) as caught:
            visualize.main("")
        return caught.value.code

    pretrained.rename(tmp_path / "moved.pth")
    line = run()
    assert line.startswith("error: the adapter's trunk swin.pth") and "\n" not in line
    assert run("--trunk", tmp_path / "moved.pth") == 0
    assert "1 of 1 images drawn" in capsys.readouterr().out
    assert (tmp_path / "pictures" / "1.png").is_file()
    other = {k: v + 1 for k, v in load_file(tmp_path / "moved.pth")["model"].items()}
    save_atomically({"model": other}, tmp_path / "other.pth")
    assert "--any-trunk" in run("--trunk", tmp_path / "other.pth")
    assert run("--trunk", tmp_path / "other.pth", "--any-trunk") == 0


def test_a_geometry_without_a_name_is_built(pretrained, folders):
    """The description of an adapter is enough, also for sizes that have no preset."""
    _, description = read_adapter(folders["one"])
    data = description.to_dict()
    data["backbone"]["geometry"] |= {"depths": [1, 1, 2, 1], "window": 3}
    cfg = describe.config_of_adapter(type(description).from_dict(data, "x"), "x")
    config = instantiate(cfg.model.backbone.bottom_up).config
    assert (config.preset.depths, config.preset.window) == ((1, 1, 2, 1), 3)
    assert config.highway == description.backbone.highway
    LazyConfig.to_py(cfg)
