"""Config files are found by name, and overrides are checked."""

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.config import LazyCall, LazyConfig, instantiate
from omegaconf import OmegaConf
from torch import nn

from e3va import UserError
from e3va.detectron2 import apply_overrides, load_config
from e3va.detectron2.config import CONFIG_ROOT, find_config, parse_value
from e3va.detectron2.describe import describe_config
from e3va.highway import highway_config
from e3va.swin.presets import PRESETS

NAME = "custom/cascade_mask_rcnn_e3va_swin_t.py"
LABELS = "custom/semantic_fpn_e3va_swin_t.py"
HIGHWAY = "model.backbone.bottom_up.highway"


def test_found_by_name_and_by_path(tmp_path, monkeypatch):
    assert find_config(NAME) == CONFIG_ROOT / NAME
    assert find_config(str(CONFIG_ROOT / NAME)) == CONFIG_ROOT / NAME
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("train = dict(max_iter=7)\n")
    assert load_config("mine.py").train.max_iter == 7


def test_a_config_contains_its_name_in_the_project(tmp_path):
    """Also once it is saved; one from elsewhere has none."""
    for given in (NAME, CONFIG_ROOT / NAME, load_config(NAME)):
        assert load_config(given).train.config_name == NAME
    LazyConfig.save(load_config(NAME), str(tmp_path / "config.yaml"))
    assert load_config(tmp_path / "config.yaml").train.config_name == NAME
    (tmp_path / "mine.py").write_text("train = dict(max_iter=7)\n")
    assert "config_name" not in load_config(tmp_path / "mine.py").train


def test_the_description_of_a_config():
    coco = describe_config(load_config("COCO/cascade_mask_rcnn_e3va_swin_s_3x.py"))
    assert coco["model"] == {"config": "COCO/cascade_mask_rcnn_e3va_swin_s_3x.py"}
    assert (coco["framework"], coco["trained_on"]) == ("detectron2", "coco_2017_train")
    assert len(coco["classes"]) == 80 and coco["classes"][0] == "person"
    cfg = load_config(NAME, ["data.classes=[fig, date]", "data.train.json=/home/me/train.json"])
    del cfg.train.config_name  # as in a config on Detectron2's own "train"
    own = describe_config(cfg)
    assert own["model"] == {"config": ""} and own["classes"] == ("fig", "date")
    assert own["trained_on"] == "train.json"


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("custom/cascade_mask_rcnn_e3va_swin_x.py", "custom/cascade_mask_rcnn_e3va_swin_"),
        ("cascade_mask_rcnn_e3va_swin_t_1x.py", "COCO/cascade_mask_rcnn_e3va_swin_t_1x.py"),
        ("", "ADE20K/"),
    ],
)
def test_unknown_config_names_the_nearest(given, nearest):
    with pytest.raises(UserError, match=f"no config file {given!r}.*nearest: {nearest}"):
        find_config(given)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-7", -7),
        ("1e-4", 1e-4),
        ("2.", 2.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[320, 400]", [320, 400]),
        ("(1, 2)", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("[p1,p2]", ["p1", "p2"]),
        ("'7'", "7"),
        ("/data/train.json", "/data/train.json"),
        ("a=b.json", "a=b.json"),
        ("swin_t", "swin_t"),
        ("C: [x", "C: [x"),
        ("2026-11-23", "2026-11-23"),
        ("", None),
    ],
)
def test_values_are_literals_or_text(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_overrides_reach_leaves_lists_and_unlisted_arguments():
    cfg = load_config(
        NAME,
        [
            "train.amp.dtype=fp16",
            "model.roi_heads.box_predictors.1.test_score_thresh=0.3",
            "data.train.short_edge=[100,120]",
            "model.backbone.square_pad=64",
            "dataloader.test.batch_size=3",
            "data.train.json=/a=b c.json",
        ],
    )
    assert cfg.train.amp.dtype == "fp16"
    thresholds = [p.test_score_thresh for p in cfg.model.roi_heads.box_predictors]
    assert thresholds == [0.05, 0.3, 0.05]
    resize = cfg.dataloader.train.mapper.augmentations[0]
    assert list(resize.short_edge_length) == [100, 120]
    assert cfg.model.backbone.square_pad == 64  # an argument of FPN that the config does not list
    assert cfg.dataloader.test.batch_size == 3
    assert cfg.dataloader.train.dataset.json_file == "/a=b c.json"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=5", "no config key 'train.max_itr': nearest: 'train.max_iter'"),
        ("trian.max_iter=5", "nearest: 'train'"),
        (f"{HIGHWAY}.rnak=5", f"nearest: '{HIGHWAY}.rank'"),
        (f"{HIGHWAY}.reduction=5", f"no config key '{HIGHWAY}.reduction'"),  # of another kind
        ("train.max_iter.x=5", "no config key 'train.max_iter.x'"),
        ("model.roi_heads.box_heads.7.fc_dims=[1]", "no config key"),
        ("train.max_iter", "expected key=value"),
        ("=5", "expected key=value"),
        ("--resume", "--resume after key=value: expected flags before the overrides"),
        ("--num-gpus=2", "--num-gpus=2 after key=value"),
    ],
)
def test_wrong_overrides_are_one_clear_line(override, message):
    with pytest.raises(UserError) as caught:
        load_config(NAME, [override])
    assert message in str(caught.value) and "\n" not in caught.value.line


def test_empty_dicts_are_there_to_be_filled():
    cfg = OmegaConf.create({"a": {}}, flags={"allow_objects": True})
    assert apply_overrides(cfg, ["a.b.c=1"]).a.b.c == 1


def test_the_given_config_does_not_change():
    cfg = load_config(NAME)
    before = OmegaConf.to_yaml(cfg)
    changed = load_config(
        cfg,
        ["train.max_iter=5", "model.pixel_mean.0=1", "model.roi_heads.box_heads.2.fc_dims=[7]"],
    )
    assert (changed.train.max_iter, changed.model.pixel_mean[0]) == (5, 1)
    assert OmegaConf.to_yaml(cfg) == before


def test_files_that_are_no_lazy_config_are_one_clear_line(tmp_path):
    (tmp_path / "broken.py").write_text("train = dict(\n")
    with pytest.raises(UserError, match="broken.py cannot be read as a LazyConfig file"):
        load_config(tmp_path / "broken.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="notes.txt cannot be read as a LazyConfig file"):
        load_config(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is a yacs config"):
        load_config("COCO/cascade_mask_rcnn_e3va_swin_t.yaml")


def test_only_the_learning_rate_of_the_adapters_is_multiplied():
    from e3va.detectron2 import E3VASwin

    cfg = load_config(NAME)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.bottom_up = E3VASwin("swin_nano")
    model.head = nn.Linear(2, 2)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    highway = model.backbone.bottom_up.highway
    norms = {id(p) for stage in highway.stages for p in stage.out_norm.parameters()}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in rates
        elif id(parameter) in norms:
            assert (rates[id(parameter)], decays[id(parameter)]) == (1e-4, 0.0)
        elif any(parameter is p for p in model.head.parameters()):
            assert (rates[id(parameter)], decays[id(parameter)]) == (1e-4, 0.05)
        else:
            assert rates[id(parameter)] == pytest.approx(6.4e-4)
            assert decays[id(parameter)] == 0.05


def test_lazy_call_arguments_are_seen_through_text_targets():
    """A config read back from YAML has its targets as text."""
    cfg = OmegaConf.create({"layer": {"_target_": "torch.nn.Linear", "in_features": 2}})
    assert apply_overrides(cfg, ["layer.out_features=3"]).layer.out_features == 3
    lazy = OmegaConf.create({"layer": LazyCall(nn.Linear)(in_features=2)})
    with pytest.raises(UserError, match="nearest: 'layer.out_features'"):
        apply_overrides(lazy, ["layer.out_featurs=3"])


def built_highway(cfg):
    cfg = cfg.copy()
    cfg.model.backbone.bottom_up.preset = "swin_nano"
    return instantiate(cfg.model.backbone.bottom_up).config.highway


@pytest.mark.parametrize(
    ("overrides", "config"),
    [
        ([], highway_config()),
        (["rank=24"], highway_config(rank=24)),
        (["rank=6", "recipe=e3va", "reduction=2"], highway_config("e3va", rank=6, reduction=2)),
        (["adapter=dual_low_rank"], highway_config(adapter="dual_low_rank")),
        (
            ["adapter=mona", "rank=6", "placement=inside"],
            highway_config(adapter="mona", rank=6, placement="inside"),
        ),
        (["recipe=full"], highway_config("full")),
    ],
)
def test_overrides_of_the_highway(overrides, config, tmp_path):
    """Also over all settings of another recipe, and once the config is saved."""
    overrides = [f"{HIGHWAY}.{override}" for override in overrides]
    cfg = load_config(NAME, overrides)
    assert built_highway(cfg) == config.complete(PRESETS["swin_nano"].embed_dim)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert built_highway(load_config(tmp_path / "config.yaml")) == built_highway(cfg)
    cfg = load_config(NAME, [f"{HIGHWAY}.kernel=3"])
    settings = highway_config(kernel=3, rank=7).to_dict()  # as an adapter brings them
    cfg.model.backbone.bottom_up.highway.update(settings)
    if any(override.rpartition("=")[0].endswith(("recipe", "adapter")) for override in overrides):
        cfg = load_config(cfg, overrides)
        assert built_highway(cfg) == config.complete(PRESETS["swin_nano"].embed_dim)


def test_a_highway_as_the_name_of_its_recipe():
    assert built_highway(load_config(NAME, [f"{HIGHWAY}=e3va"])).recipe == "e3va"


def test_a_config_of_version_0_1_is_refused(tmp_path):
    cfg = load_config(NAME)
    cfg.model.backbone.bottom_up.method = "paper"
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    with pytest.raises(UserError, match="'method'.*'highway'"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("config", "override", "values"),
    [
        (NAME, "train.max_iter=abc", "abc whole"),
        (NAME, "train.max_iter=0", "0 1"),
        (NAME, "train.max_iter=1.5", "1.5 whole"),
        (NAME, "train.eval_period=-1", "-1 0"),
        (NAME, "train.accumulate=0", "0 1"),
        (NAME, "train.clip_norm=-1", "-1 0"),
        (NAME, "train.amp.enabled=1", "1 true false"),
        (NAME, "train.amp.dtype=fp8", "fp8 bf16 fp16"),
        (NAME, "train.device=xpuu", "xpuu cpu cuda"),
        (NAME, "train.device=5", "5 cpu cuda"),
        (NAME, "train.adapter_parts=head", "head all backbone"),
        (NAME, "train.output_dir=", "folder"),
        (NAME, "data.train.json=5", "5 path"),
        (NAME, "data.train.short_edge=[]", "[] list"),
        (NAME, "data.train.short_edge=[64,0]", "[64, 0] list"),
        (NAME, "data.train.short_edge=wide", "wide list"),
        (LABELS, "data.train.short_edge=[]", "[] list"),
        (LABELS, "data.train.crop=[512]", "[512] height width"),
        (LABELS, "data.train.crop=512", "512 height width"),
        (LABELS, "data.class_area=75", "75 0 1"),
        (LABELS, "data.val.short_edge=[512]", "[512] whole"),
        (NAME, "data.max_size=0", "0 1"),
        (NAME, "data.classes=[]", "[] names"),
        (NAME, "data.classes=fig", "fig names"),
        (NAME, "dataloader.train.total_batch_size=0", "0 1"),
        (NAME, "dataloader.train.num_workers=-1", "-1 0"),
        (NAME, "optimizer.lr=-1", "-1 0"),
        (NAME, "optimizer.lr=fast", "fast number"),
        (NAME, "optimizer.weight_decay=nan", "nan 0"),
        (NAME, "lr_multiplier.warmup_length=500", "500 0 1"),
        (NAME, "model.backbone.bottom_up.memory=small", "small standard lean plain"),
        (NAME, "model.backbone.bottom_up.trunk_precision=fp8", "fp8 auto fp32 bf16 fp16"),
        (NAME, "model.backbone.bottom_up.preset=swin_x", "swin_x swin_t swin_l"),
        (NAME, "model.backbone.bottom_up.preset=[1]", "[1] swin_t"),
        (NAME, "model.backbone.bottom_up.out_features=[p9]", "p9 p0 p3"),
        (NAME, f"{HIGHWAY}.recipe=e3v", "e3v e3va_chain frozen full"),
        (NAME, f"{HIGHWAY}.rank=0", "rank=0 1"),
        (NAME, f"{HIGHWAY}.rank=wide", "rank= wide whole"),
        (NAME, f"{HIGHWAY}.kernel=4", "kernel 4 odd"),
        (NAME, f"{HIGHWAY}.taps=all", "taps all block residual sublayer"),
        (NAME, f"{HIGHWAY}.adapter=prefix", "prefix conv dual_low_rank"),
        (NAME, "model.roi_heads.batch_size_per_image=many", "many 512"),
    ],
)
def test_values_are_checked_when_the_config_is_loaded(config, override, values):
    """One line names the key, the value and what is expected."""
    with pytest.raises(UserError) as caught:
        load_config(config, [override])
    line = caught.value.line
    assert "\n" not in str(caught.value)
    key = override.partition("=")[0]
    backbone = key.startswith((HIGHWAY, "model.backbone.bottom_up.preset"))
    assert line.startswith("model.backbone.bottom_up: " if backbone else key)
    assert all(value in line for value in values.split()), line


@pytest.mark.parametrize("name", [NAME, LABELS, "custom/retinanet_e3va_swin_t.py"])
@pytest.mark.parametrize(
    ("given", "sides"),
    [("[128]", {128}), ("128", {128}), ("[128,160]", {128, 160})],
)
def test_short_edge_is_a_list_of_choices_everywhere(name, given, sides):
    cfg = load_config(name, [f"data.train.short_edge={given}"])
    resize = instantiate(cfg.dataloader.train.mapper.augmentations[0])
    image = np.zeros((200, 300, 3), np.uint8)
    np.random.seed(0)
    assert {
        min(resize.get_transform(image).apply_image(image).shape[:2]) for _ in range(20)
    } == sides


@pytest.mark.parametrize("name", [LABELS, "ADE20K/semantic_fpn_e3va_swin_t_80k.py"])
def test_semantic_fpn_draws_every_size_from_256_to_1024(name):
    """The draws are those of Detectron2's range, number by number."""
    node = load_config(name).dataloader.train.mapper.augmentations[0]
    image = np.zeros((512, 600, 3), np.uint8)
    drawn = []
    for resize in (instantiate(node), T.ResizeShortestEdge([256, 1024], 4096, "range")):
        np.random.seed(1)
        drawn.append([resize.get_transform(image).new_h for _ in range(200)])
    assert drawn[0] == drawn[1] and 256 <= min(drawn[0]) < 300 and 980 < max(drawn[0]) <= 1024
