"""RetinaNet on Pascal VOC and on a user's own boxes, FCOS, Faster R-CNN and panoptic FPN."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, register_pascal_voc
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from e3va import UserError
from e3va.backbone import find_backbone
from e3va.detectron2 import LazyPredictor, add_e3va_config, engine, load_config
from e3va.detectron2.backbone import model_parts
from e3va.detectron2.config import CONFIG_ROOT
from e3va.detectron2.describe import describe_config, make_preset
from e3va.detectron2.lean import prepare_model
from e3va.swin.presets import PRESETS
from e3va.utils.measure import track_saved_bytes

VOC = "VOC/retinanet_e3va_swin_t.py"
OWN = "custom/retinanet_e3va_swin_t.py"
SPLITS = (("voc_2007_trainval", 2007), ("voc_2012_trainval", 2012), ("voc_2007_test", 2007))
NARROW = [
    "model.backbone.bottom_up.preset=swin_nano",
    "model.backbone.out_channels=64",
    "model.head.conv_dims=[64, 64]",
    "model.head.input_shape=[" + ", ".join(5 * ["{channels: 64}"]) + "]",
]


# --- Pascal VOC ---


def write_picture(folder, name, objects):
    """A picture with its XML as in the devkit; objects are (class, (x1, y1, x2, y2), difficult),
    of pixels that count from 1, the last one included."""
    root = ET.Element("annotation")
    size = ET.SubElement(root, "size")
    for key, value in (("width", 96), ("height", 80), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    for kind, box, difficult in objects:
        node = ET.SubElement(root, "object")
        for key, value in (
            *(("name", kind), ("pose", "Left"), ("truncated", 0), ("difficult", int(difficult))),
        ):
            ET.SubElement(node, key).text = str(value)
        corners = ET.SubElement(node, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ET.SubElement(corners, key).text = str(value)
    ET.ElementTree(root).write(folder / "Annotations" / f"{name}.xml")
    pixels = np.full((80, 96, 3), 120, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")


@pytest.fixture
def voc(tmp_path, monkeypatch):
    """VOC2007 and VOC2012 of a few pictures, known by Detectron2's names; the 2007 test split has
    two pictures of each class, with one object, and a difficult cat."""
    for year in ("VOC2007", "VOC2012"):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / year / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, year in SPLITS:
        folder, split = tmp_path / f"VOC{year}", name.split("_")[2]
        names = [f"{split}{i:03}" for i in range(40 if split == "test" else 3)]
        for number, stem in enumerate(names):
            x, y = generator.integers(1, 40, 2).tolist()
            objects = [(CLASS_NAMES[number % 20], (x, y, x + 39, y + 29), False)]
            if stem == "test000":
                objects.append(("cat", (50, 50, 96, 80), True))
            write_picture(folder, stem, objects)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
        register_pascal_voc(name, str(folder), split, year)
    return tmp_path


def score(cfg, keep=lambda annotation, number: True):
    """VOC's AP with the ground truth for predictions, or those of it that ``keep`` keeps."""
    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.reset()
    for number, record in enumerate(instantiate(cfg.dataloader.test.dataset)):
        kept = [a for a in record["annotations"] if keep(a, number)]
        found = Instances((record["height"], record["width"]))
        found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in kept]).reshape(-1, 4))
        found.scores = torch.linspace(0.9, 0.8, len(kept))
        found.pred_classes = torch.tensor([a["category_id"] for a in kept], dtype=torch.long)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_voc_evaluates_the_truth_with_100(voc):
    assert score(load_config(VOC)) == pytest.approx({"AP": 100, "AP50": 100, "AP75": 100})


def test_voc_ap_is_that_of_eleven_points(voc):
    """Without one of a class's two objects, precision is 1 at six of the eleven recalls."""
    cats = CLASS_NAMES.index("cat")
    found = score(load_config(VOC), lambda a, n: a["category_id"] != cats or n >= 20)
    assert found["AP50"] == pytest.approx((19 * 100 + 100 * 6 / 11) / 20)
    assert score(load_config(VOC), lambda a, n: False)["AP"] == 0


def test_voc_difficult_objects_are_not_missed(voc):
    """The cat of the first picture is marked difficult: without it all is found."""
    found = score(load_config(VOC), lambda a, n: n or a["category_id"] == 0)
    assert found["AP"] == pytest.approx(100)


def test_voc_trains_on_both_years_and_describes_them(voc):
    cfg = load_config(VOC, ["dataloader.train.num_workers=0"])
    loader = instantiate(cfg.dataloader.train)
    assert (loader.images, loader.objects) == (6, 6)
    description = describe_config(cfg, loader)
    assert (
        description["classes"] == CLASS_NAMES
        and len(description["classes"]) == cfg.model.num_classes
    )
    names = "voc_2007_trainval, voc_2012_trainval"
    assert description["trained_on"] == f"6 images with 6 annotated objects ({names})"
    example = next(iter(loader))[0]
    box, image = example["instances"].gt_boxes.tensor[0], example["image"]
    scale = image.shape[2] / 96
    assert (box[2] - box[0]).item() == pytest.approx(40 * scale, rel=0.01)
    assert not example["instances"].has("gt_masks")


def test_missing_voc_is_one_clear_line(voc):
    (voc / "VOC2012/ImageSets/Main/trainval.txt").unlink()
    with pytest.raises(UserError) as caught:
        instantiate(load_config(VOC).dataloader.train.dataset)
    line = caught.value.line
    assert line.startswith("data set voc_2007_trainval + voc_2012_trainval: no annotation file")
    assert "VOC2012/ImageSets/Main/trainval.txt" in line and "DETECTRON2_DATASETS" in line


# --- models ---


def test_retinanet_reads_three_levels_and_makes_five():
    model = instantiate(load_config(VOC, NARROW).model)
    bottom_up, image = find_backbone(model)[1], torch.rand(1, 3, 128, 160)
    assert [stage.out_norm is not None for stage in bottom_up.highway.stages] == [0, 1, 1, 1]
    below, above = bottom_up(image), model.backbone(image)
    assert {name: tuple(level.shape[2:]) for name, level in above.items()} == {
        "p3": (16, 20),
        "p4": (8, 10),
        "p5": (4, 5),
        "p6": (2, 3),
        "p7": (1, 2),
    }
    own = model.backbone.top_block.p6(below["p3"])  # of stride 32; FPN's p3 has stride 8
    assert torch.equal(above["p6"], own)


@pytest.mark.parametrize("preset", ["swin_mini", "swin_b_384"])
def test_a_preset_override_reaches_the_top_block(preset):
    """As a name, and as the geometry that an adapter brings."""
    geometry = {k: getattr(PRESETS[preset], k) for k in PRESETS[preset].__dataclass_fields__}
    for given in (preset, LazyCall(make_preset)(**geometry)):
        cfg = load_config(VOC).model
        cfg.backbone.bottom_up.preset = given
        with torch.device("meta"):
            block = instantiate(cfg).backbone.top_block
        assert block.p6.weight.shape == (256, PRESETS[preset].dims[-1], 3, 3)


def test_retinanet_has_the_anchors_and_losses_of_its_yacs_twin():
    cfg = get_cfg()
    add_e3va_config(cfg)
    cfg.merge_from_file(str(CONFIG_ROOT / "VOC/retinanet_e3va_swin_t.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.E3VA.PRESET = "cpu", "swin_nano"
    lazy = load_config(VOC, ["model.backbone.bottom_up.preset=swin_nano"])
    twins = [build_model(cfg).train(), instantiate(lazy.model).train()]
    twins[1].load_state_dict(twins[0].state_dict())
    cells = [twin.anchor_generator.cell_anchors for twin in twins]
    for one, other in zip(*cells, strict=True):
        torch.testing.assert_close(one, other)
    losses = [step(twin)[0] for twin in twins]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])


def step(model):
    """Losses, gradients, and bytes kept by part."""
    torch.manual_seed(5)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 10.0, 90.0, 60.0]]))
    instances.gt_classes = torch.tensor([1, 0])
    instances.gt_masks = BitMasks(torch.rand(2, 64, 96) > 0.5)
    image = 255 * torch.rand(3, 64, 96)
    batch = [{"image": image, "instances": instances, "sem_seg": torch.zeros(64, 96).long()}]
    with EventStorage(0), track_saved_bytes(model, model_parts(model)) as saved:
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return losses, gradients, saved.by_part


def test_fcos_lean_computes_the_same_and_keeps_less():
    cfg = load_config("COCO/fcos_e3va_swin_t_1x.py", NARROW).model
    found = {}
    for memory in ("standard", "lean"):
        torch.manual_seed(0)
        model = instantiate(cfg).train()
        backbone = find_backbone(model)[1]
        backbone.prepare = lambda mixed: None  # only neck and heads differ
        backbone.memory = memory
        for _ in range(3):  # the scripted loss rounds otherwise once it has been compiled
            model.zero_grad()
            prepare_model(model, mixed=False)
            vars(model).pop("loss_normalizer", None)
            found[memory] = step(model)
    (losses, gradients, kept), (lean_losses, lean_gradients, lean_kept) = found.values()
    for one, other in ((losses, lean_losses), (gradients, lean_gradients)):
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert lean_kept["heads"] < 0.6 * kept["heads"] and lean_kept["neck"] < kept["neck"]


def test_fcos_puts_p6_on_the_pyramid():
    model = instantiate(load_config("COCO/fcos_e3va_swin_t_1x.py", NARROW).model)
    levels = model.backbone(torch.rand(1, 3, 128, 160))
    assert torch.equal(levels["p6"], model.backbone.top_block.p6(levels["p5"]))


def test_faster_rcnn_has_no_masks_and_panoptic_fpn_all_outputs():
    narrow = ["model.backbone.bottom_up.preset=swin_nano", "model.roi_heads.num_classes=2"]
    image = [{"image": 255 * torch.rand(3, 64, 96), "height": 64, "width": 96}]
    for name, keys, masks in (
        ("faster_rcnn", {"instances"}, False),
        ("panoptic_fpn", {"instances", "sem_seg", "panoptic_seg"}, True),
    ):
        model = instantiate(load_config(f"COCO/{name}_e3va_swin_t_1x.py", narrow).model).eval()
        with torch.no_grad():
            found = model(image)[0]
        assert found.keys() == keys
        assert found["instances"].has("pred_masks") == masks
    assert found["sem_seg"].shape == (54, 64, 96)


def test_missing_panoptic_data_are_one_clear_line():
    cfg = load_config("COCO/panoptic_fpn_e3va_swin_t_1x.py")
    with pytest.raises(UserError, match="data set coco_2017_val_panoptic_separated: no"):
        instantiate(cfg.dataloader.test.dataset)
    assert len(cfg.dataloader.evaluator) == 3
    assert {e.dataset_name for e in cfg.dataloader.evaluator} == {cfg.dataloader.test.dataset.names}


# --- a user's own boxes ---


def test_own_boxes_without_masks_are_trained_on_evaluated_and_predicted(
    drawn, pretrained, tmp_path
):
    for annotation in drawn.data["annotations"]:
        del annotation["segmentation"]
    drawn.save()
    output = tmp_path / "output"
    overrides = [
        *NARROW,
        *(f"data.{split}.json={drawn.json}" for split in ("train", "val")),
        *(f"data.{split}.images={drawn.images}" for split in ("train", "val")),
        *("data.train.short_edge=[64,80]", "data.val.short_edge=64", "optimizer.lr=1e-3"),
        *("dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        *("train.device=cpu", "train.max_iter=3", "train.eval_period=0", "train.log_period=1"),
        *(f"train.init_checkpoint={pretrained}", f"train.output_dir={output}"),
    ]
    cfg = engine.prepare(load_config(OWN, overrides))
    assert cfg.model.num_classes == 2 and list(cfg.data.classes) == ["red", "blue"]
    trainer = engine.train(cfg)
    assert engine.evaluate(cfg, trainer.model).keys() == {"bbox"}
    # The adapter names its config; heads of another width are given as for training.
    predictor = LazyPredictor(
        weights=output,
        overrides=[*NARROW[1:], "model.test_score_thresh=0"],
        trunk=pretrained,
        device="cpu",
    )
    found = predictor(np.full((80, 96, 3), 120, dtype=np.uint8))["instances"]
    assert len(found) > 0 and set(found.pred_classes.tolist()) <= {0, 1}
    assert predictor.metadata.thing_classes == ["red", "blue"]
    assert predictor.cfg.train.config_name == OWN
