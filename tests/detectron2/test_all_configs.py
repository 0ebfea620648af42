"""Every config file: it builds at its full size, is light, and its model learns in one step.

Files that differ only in their schedule describe the same model, which is tested once.
"""

import importlib
import re
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig, OmegaConf

from e3va.backbone import find_backbone
from e3va.detectron2 import add_e3va_config, load_config
from e3va.detectron2.backbone import model_parts
from e3va.detectron2.config import CONFIG_ROOT
from e3va.detectron2.describe import set_classes
from e3va.swin.presets import PRESETS
from e3va.utils.measure import count_parameters


def files(ending):
    paths = (path.relative_to(CONFIG_ROOT) for path in sorted(CONFIG_ROOT.rglob(f"*.{ending}")))
    # What is installed as a package may have an __init__.py.
    return [p for p in paths if p.parts[0] != "common" and not p.name.startswith("_")]


# A file with tasks names the configs of others, see test_together.py.
LAZY = [p for p in files("py") if "_and_" not in p.name]
YACS = files("yaml")
ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "projects" / "E3VA" / "README.md"
SIDES = (64, 96)
WIDTHS = ("channels", "in_channels", "out_channels", "conv_dims", "fc_dims")
NARROW = 64  # two for each of a GroupNorm's groups: its least levels are of one pixel
FEW = {"post_nms_topk": [20, 20], "batch_size_per_image": 16}


@lru_cache
def load(path):
    cfg = load_config(path)
    if "data" in cfg:  # a user's own, whose classes are in the annotations
        set_classes(cfg, ("one", "two", "three"))
    return cfg


def contents(node):
    return str(OmegaConf.to_container(node, resolve=True))


_built, _stepped = {}, {}


def build_on_meta(path):
    """The full-size model of a LazyConfig, without memory for its weights."""
    model, key = load(path).model, contents(load(path).model)
    if key not in _built:
        with torch.device("meta"):
            _built[key] = instantiate(model)
    return _built[key]


def narrow(node):
    """Make all layers of a model's config few channels wide, in place."""
    if isinstance(node, ListConfig):
        for child in node:
            narrow(child)
    if not isinstance(node, DictConfig):
        return
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if key in WIDTHS and value is not None:
            node[key] = NARROW if isinstance(value, int) else [NARROW] * len(value)
        elif key in FEW:
            node[key] = FEW[key]
        else:
            narrow(value)


def build_narrow(path):
    model = load(path).model.copy()
    model.backbone.bottom_up.preset = "swin_nano"
    narrow(model)
    return contents(model), model


def example(generator):
    """An image with two objects, their masks, and a label map."""
    height, width = SIDES
    instances = Instances(SIDES)
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 5.0, 94.0, 60.0]]))
    instances.gt_classes = torch.tensor([1, 0])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 8:50, 5:40], masks[1, 5:60, 30:94] = True, True
    instances.gt_masks = BitMasks(masks)
    image = 255 * torch.rand(3, height, width, generator=generator)
    labels = torch.randint(0, 3, SIDES, generator=generator)
    return {"image": image, "instances": instances, "sem_seg": labels}


def take_step(cfg):
    """One SGD step of a small model; returns it with losses and which parameters changed."""
    torch.manual_seed(0)
    model = instantiate(cfg).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    with EventStorage(0):
        losses = model([example(torch.Generator().manual_seed(1))])
    sum(losses.values()).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    return model, losses, changed


def count_trained(model):
    """Trained parameters of the model, and of its backbone those and all."""
    rows = {row.part: row for row in count_parameters(model, model_parts(model))}
    assert rows["trunk"].trained == 0 and "other" not in rows
    assert all(rows[part].share == 1 for part in ("highway", "neck", "heads"))
    total = rows["trunk"].total + rows["highway"].total
    return sum(row.trained for row in rows.values()), rows["highway"].trained, total


@pytest.mark.parametrize("path", LAZY, ids=str)
def test_at_full_size_little_of_the_backbone_trains(path):
    trained, highway, backbone = count_trained(build_on_meta(path))
    share = 100 * highway / backbone
    print(f"{path}: {share:.2f}% of the backbone trains, {trained:,} parameters in all")
    assert 0.5 < round(share, 1) <= 1.5


LENGTHS = {"1x": 90000, "3x": 270000, "80k": 80000, "160k": 160000}


@pytest.mark.parametrize("path", LAZY, ids=str)
def test_a_config_has_the_model_and_schedule_in_its_name(path):
    kind, size, length = re.fullmatch(r"(.+)_e3va_(swin_[tsbl])(?:_(\w+))?", path.stem).groups()
    cfg, model = load(path), build_on_meta(path)
    assert find_backbone(model)[1].trunk.preset == PRESETS[size]
    assert cfg.train.max_iter == LENGTHS.get(length, 18000 if path.parts[0] == "VOC" else 1000)
    assert cfg.dataloader.train.mapper.image_format == "RGB"
    assert cfg.model.get("input_format", "RGB") == "RGB"
    if "cascade" in kind:
        convolutions = [len(head.conv_norm_relus) for head in model.roi_heads.box_head]
        assert convolutions == 3 * [4 if "4conv1fc" in kind else 0]


@pytest.mark.parametrize("path", LAZY, ids=str)
def test_one_step_changes_every_trained_parameter_and_never_the_trunk(path):
    key, cfg = build_narrow(path)
    if key not in _stepped:
        _stepped[key] = take_step(cfg)
    model, losses, changed = _stepped[key]
    assert len(losses) >= 1 and all(loss.isfinite() for loss in losses.values())
    trunk = {id(p) for p in find_backbone(model)[1].trunk.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (id(parameter) in trunk), name
        assert (parameter.grad is None) == (id(parameter) in trunk), name
        assert id(parameter) not in trunk or name not in changed, name
    assert any(".highway." in name for name in changed)
    assert any(not name.startswith("backbone.") for name in changed)


def build_yacs_on_meta(path):
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(str(CONFIG_ROOT / path))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def twins(path):
    """The LazyConfigs that a YAML file stands for: its name, with or without a schedule's."""
    names = [p for p in LAZY if p.parent == path.parent and p.stem.startswith(path.stem)]
    return [p for p in names if p.stem[len(path.stem) :].count("_") <= 1]


@pytest.mark.parametrize("path", YACS, ids=str)
def test_yacs_and_lazy_twins_have_the_same_parameters(path):
    found = build_yacs_on_meta(path)
    shapes = {name: value.shape for name, value in found.state_dict().items()}
    trained = {name for name, value in found.named_parameters() if value.requires_grad}
    assert twins(path)
    for twin in twins(path):
        model = build_on_meta(twin)
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        assert {n for n, value in model.named_parameters() if value.requires_grad} == trained
        assert type(model) is type(found)


def test_yacs_files_of_a_kind_differ_only_in_size():
    texts = {}
    for path in YACS:
        cfg = get_cfg()
        add_e3va_config(cfg)
        cfg.merge_from_file(str(CONFIG_ROOT / path))
        kind, _, size = path.stem.rpartition("swin_")
        expected, cfg.MODEL.E3VA.PRESET = cfg.MODEL.E3VA.PRESET, ""
        assert expected.removeprefix("swin_") == size
        texts.setdefault((path.parent, kind), set()).add(cfg.dump())
    assert all(len(same) == 1 for same in texts.values())


def test_what_yacs_can_build_has_a_yaml_file():
    """All but other box heads, a user's own data, and models that need a LazyConfig."""
    without = set(LAZY) - {twin for path in YACS for twin in twins(path)}
    for path in without:
        if path.parts[0] != "custom" and "4conv1fc" not in path.name:
            assert type(build_on_meta(path)).__name__ not in META_ARCH_REGISTRY, path


def listed():
    """Cells of the README's lines, by config."""
    rows = (
        row
        for row in README.read_text().splitlines()
        if row.startswith("| [") and "](../../configs" in row
    )
    lines = (row.split(" | ") for row in rows)
    found = [(re.search(r"\(\.\./\.\./configs/(\S+)\)", cells[0])[1], cells) for cells in lines]
    assert len(found) == len({name for name, _ in found})
    return dict(found)


def test_the_readme_lists_every_config():
    assert set(listed()) == {path.as_posix() for path in LAZY}


@pytest.mark.parametrize("name", sorted(listed()))
def test_the_numbers_of_a_config_in_the_readme_are_right(name):
    trained, highway, backbone = count_trained(build_on_meta(Path(name)))
    cells = listed()[name]
    assert cells[2] == f"{trained / 1e6:.1f}" and cells[3] == f"{highway / 1e6:.2f}"
    assert cells[4] == f"{highway / backbone:.2%}"
    cfg = load(Path(name))
    assert cells[1] == f"{cfg.train.max_iter:,} × {cfg.dataloader.train.total_batch_size}"


@pytest.fixture
def benchmark(monkeypatch):
    """Runs benchmarks/configs.py with arguments; returns its exit status."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("configs")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["configs", *map(str, arguments)])
        return module.main()

    return run


@pytest.mark.slow
def test_the_table_is_measured_and_put_between_its_marks(benchmark, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- configs: begin -->\nold\n<!-- configs: end -->\nbelow\n")
    only = "COCO/f*_e3va_swin_t_1x.py"
    assert benchmark("--only", only, "--side", 256, "--readme", readme) == 0
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert "256×256" in text and "### COCO: detection" in text
    for name in ("faster_rcnn", "fcos"):
        cells = re.search(rf".*{name}_e3va_swin_t_1x\.py.*", text)[0].split(" | ")
        assert cells[2:5] == listed()[f"COCO/{name}_e3va_swin_t_1x.py"][2:5]
        assert 0 < float(cells[6]) < float(cells[5]) < 500


def test_mistakes_of_the_table_are_one_line(benchmark, tmp_path, capsys):
    assert benchmark("--only", "nothing") == 1
    assert "error: --only nothing: no config matches" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no marks")
    only = ("--only", "COCO/fcos_e3va_swin_t_1x.py", "--side", 64)
    assert benchmark(*only, "--readme", tmp_path / "README.md") == 1
    assert "expected the lines <!-- configs: begin -->" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no marks"
